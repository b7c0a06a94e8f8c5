# make demo         sets up, builds, trains a network without and with attention on event recordings of handwriting,
#                   and writes a page that compares them
# make test         sets up, builds, runs every test
# make setup        the part that both share: .venv, what it needs, the build; a second call does nothing
# make lint         checks style, types and the workflow file
# make docs         builds the site of the documentation: build/site/html/index.html
# make wheel        packs what was built: dist/*.whl, which runs under any torch >= 2.10
# make test-wheel   installs it in an environment of its own, and uses it there
# make sdist        packs the sources: dist/*.tar.gz
# make bench        measures on the CPU and renders the tables; make bench-peers first installs the peers beside
# make bench-models measures whole networks
# make test-long    tests with more kills and damages
# make test-peers   tests against SpikingJelly, snnTorch, NIR and ONNX, which it installs
# make gpu          on a machine with a CUDA GPU and nvcc: builds, tests, checks memory, measures
# make bench-gpu    the same with every case
# make clean        removes what was built and trained
#
# PYTHON=python3.12              the Python of the environment (>= 3.10)
# TORCH_INDEX_URL=URL            where pip takes torch from, e.g. PyTorch's index of CPU-only builds
# ATTSNN_CUDA=0                  builds no CUDA kernels, in a fraction of the time
# TORCH_CUDA_ARCH_LIST="9.0"     GPU architectures; the fewer, the faster the build
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
# torchvision's compiled half fits the torch of its own index only.
TORCH := $(shell sed -n -e '/^torch==/p' -e '/^torchvision==/p' requirements.txt)
SOURCES := $(shell find csrc tests/cpp -type f) CMakeLists.txt setup.py

.PHONY: always help setup demo docs wheel test-wheel sdist test test-long test-peers bench bench-models bench-peers gpu bench-gpu lint clean
help:
	@sed -n '/^[^#]/q; s/^# \{0,1\}//p' Makefile

setup: $(VENV)/.built

$(PY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "attsnn needs Python >= 3.10; this is " + sys.version.split()[0] + ": make PYTHON=python3.12 $(MAKECMDGOALS)")'
	@$(PYTHON) -m venv $(VENV) || (rm -rf $(VENV); echo "attsnn: $(PYTHON) has no venv: install it (Debian: apt install python3-venv)"; exit 1)

$(VENV)/.installed: requirements.txt | $(PY)
	$(PY) -m pip install --quiet --disable-pip-version-check $(if $(TORCH_INDEX_URL),--index-url $(TORCH_INDEX_URL)) $(TORCH)
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

# What the build was asked for: another wish builds again.
WISH := ATTSNN_CUDA=$(ATTSNN_CUDA) TORCH_CUDA_ARCH_LIST=$(TORCH_CUDA_ARCH_LIST)
$(VENV)/.wish: always | $(PY)
	@echo '$(WISH)' | cmp -s - $@ || echo '$(WISH)' > $@

# An editable install builds the extension in place, as `python setup.py build_ext` does.
$(VENV)/.built: $(VENV)/.installed $(VENV)/.wish pyproject.toml $(SOURCES)
	$(PY) setup.py --quiet build_ext
	$(PY) -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps --editable .
	@touch $@

# A second call goes on where the first was stopped, and measures again what is done; `rm -r runs` begins anew.
demo: setup
	$(PY) train/dvs.py samples --attention None --name plain --resume auto
	$(PY) train/dvs.py samples --name samples --resume auto
	$(PY) -m attsnn report runs/plain runs/samples

# An environment of its own that also finds the packages of .venv, but not what is installed there as editable.
SITE := import site; print(site.getsitepackages()[0])
borrow = $(PY) -c "$(SITE)" > $$($(1)/bin/python -c "$(SITE)")/base.pth

docs: setup
	$(PY) docs/conf.py

# From the objects that are there: nothing is compiled a second time.
REPAIR = $(shell sed -n 's/^repair-wheel-command = "\(.*\)"/\1/p' pyproject.toml)
wheel: setup
	rm -rf build/wheel dist/*.whl
	$(PY) -m pip wheel --quiet --disable-pip-version-check --no-build-isolation --no-deps -w build/wheel .
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" $(PY) -m $(subst {dest_dir},dist,$(REPAIR:{wheel}=build/wheel/*.whl))
	@du -h dist/*.whl

# The environment has torch of .venv, and attsnn of the wheel alone.
BESIDE := build/wheel-venv
test-wheel: wheel
	$(PYTHON) -m venv --clear $(BESIDE)
	$(call borrow,$(BESIDE))
	$(BESIDE)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps dist/*.whl
	cd $(BESIDE) && bin/python $(CURDIR)/tests/wheel.py

sdist: setup
	$(PY) setup.py --quiet sdist

# Two workers, a file to one of them: many tests wait for a process or a disc. Their threads wait asleep. The
# order of the files is that of tests/conftest.py. What runs the CUDA kernels on the host is built first.
test: setup
	$(PY) tests/on_host.py
	OMP_WAIT_POLICY=passive $(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# kill -9 at 20 random moments instead of 5; 500 damages to run directories for 50, 30 pairs of processes for 3.
test-long:
	ATTSNN_KILLS=20 ATTSNN_DAMAGES=500 ATTSNN_PAIRS=30 $(MAKE) test

# What users of the bench have beside the package: an environment on top of .venv, with the peers alone.
PEERS := .venv-peers
bench-peers: $(PEERS)/.installed
$(PEERS)/.installed: bench/peers.txt $(VENV)/.built
	$(PYTHON) -m venv $(PEERS)
	$(call borrow,$(PEERS))
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r bench/peers.txt
	@touch $@

# The same with SpikingJelly as most published networks want it.
OLD_PEERS := .venv-peers-old
$(OLD_PEERS)/.installed: $(VENV)/.built
	$(PYTHON) -m venv $(OLD_PEERS)
	$(call borrow,$(OLD_PEERS))
	$(OLD_PEERS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps spikingjelly==0.0.0.0.14
	@touch $@

# What compares with the peers, in their environments.
test-peers: $(PEERS)/.installed $(OLD_PEERS)/.installed
	PYTHONPATH=$(CURDIR) $(PEERS)/bin/python -m pytest -q tests/test_profile_peers.py tests/test_accelerate.py \
	  tests/test_fusing.py tests/test_nir.py tests/test_onnx.py tests/test_docs.py::test_programs_run
	PYTHONPATH=$(CURDIR) $(OLD_PEERS)/bin/python -m pytest -q tests/test_accelerate.py tests/test_fusing.py

# With the peers where `make bench-peers` has set them up, in less than five minutes: columns that take long to
# be ready or to be timed are left to the scripts, which try every one.
BENCH_PY = $(firstword $(wildcard $(PEERS)/bin/python) $(PY))
bench: setup
	$(BENCH_PY) bench/neuron.py --budget 0.5 --case C0 --neuron leaky
	$(BENCH_PY) bench/neuron.py --budget 0.5 --case C0 --neuron ms_resnet --columns attsnn "eager, published" eager
	$(BENCH_PY) bench/neuron.py --budget 0.3 --case C1 --columns attsnn eager SpikingJelly
	$(BENCH_PY) bench/neuron.py --cold
	$(BENCH_PY) bench/neuron.py --growth --columns attsnn eager SpikingJelly
	$(BENCH_PY) bench/seams.py --budget 0.2 --case B1 G1 --columns attsnn composed
	$(BENCH_PY) bench/pfa.py --threads 1 --budget 0.2 --cap 3 --columns attsnn published composed "composed by step"
	$(PY) bench/report.py
# Whole networks, which take as long again.
bench-models: setup
	$(BENCH_PY) bench/model.py --budget 10 --columns attsnn composed "composed, published" SpikingJelly
	$(BENCH_PY) bench/model.py --budget 10 --dtype bf16 --case "CSA 1x" --columns attsnn composed
	$(BENCH_PY) bench/vae.py
	$(BENCH_PY) bench/stream.py
	$(PY) bench/report.py

# On a machine with a GPU: the Python that is there (PYTHON=), nothing installed.  OUT=DIR: where results go
gpu:
	$(PYTHON) bench/gpu.py $(if $(OUT),--out $(OUT))
bench-gpu:
	$(PYTHON) bench/gpu.py --all $(if $(OUT),--out $(OUT))

lint: setup
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(VENV)/bin/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(VENV)/bin/clang-format --dry-run --Werror $(shell find csrc tests/cpp -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

clean:
	rm -rf build dist runs attsnn/_C.* *.egg-info $(VENV)/.built $(PEERS) $(OLD_PEERS)
