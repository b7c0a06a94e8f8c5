"""The CUDA kernels without a GPU: run on the host under the sanitizers, and what the compiler says of
them.
"""

import re
import sys

import on_host
import pytest

CASES = [
    "float",
    "double",
    "bfloat16",
    "half",
    "emits",
    "surrogates",
    "bits",
    "learned",
    "repeated",
]  # and "soft spikes"


# The thread sanitizer looks at who writes where and who waits for whom, which the type does not change.
RACES = ["float", "bits", "learned"]


@pytest.fixture(scope="module")
def programs():
    return on_host.build("neuron", "reduce")


@pytest.mark.parametrize(
    ("case", "sanitizer"),
    [*((case, "address") for case in [*CASES, "soft spikes"]), *((case, "thread") for case in RACES)],
)
def test_neuron_kernels_equal_the_cpu_kernels(programs, case, sanitizer):
    on_host.must_be_equal(programs / f"neuron_{sanitizer}", case)


def test_every_case_is_run(programs):
    assert sorted(on_host.cases(programs / "neuron_address")) == sorted([*CASES, "soft spikes"])


@pytest.mark.parametrize("sanitizer", ["address", "thread"])
def test_reduction(programs, sanitizer):
    on_host.must_be_equal(programs / f"reduce_{sanitizer}")


def test_a_missing_barrier_is_reported(programs):
    done = on_host.run(programs / "reduce_no_barrier")
    assert done.returncode != 0 and ("data race" in done.stderr or "wanted" in done.stdout)


SEAM_KERNELS = (
    "fold_planes_kernel",
    "fold_channels_kernel",
    "fold_rows_kernel",
    "fold_steps_kernel",
    "grad_kernel",
    "SummingSink",
)
IO_TYPES = {"float": "f", "double": "d", "Half": "N3c104HalfE", "BFloat16": "N3c108BFloat16E"}  # mangled


def test_kernels_compile_without_spills(fused):
    """ptxas' report of the build: no kernel spills registers, for other architectures than sm_90 more than
    three, and those of every type and architecture that was asked for are there.
    """
    if not fused.cuda_runtime:
        pytest.skip("no nvcc")
    reports = (on_host.ROOT / "build" / f"cmake-{sys.implementation.cache_tag}").glob("*.ptxas")
    report = "".join(path.read_text() for path in reports)
    kernels = re.findall(
        r"Compiling entry function '(\S+)' for '(\w+)'.*?(\d+) bytes spill stores, (\d+) bytes spill loads",
        report,
        re.DOTALL,
    )
    spilled = [k for k in kernels if max(map(int, k[2:])) > (0 if k[1] == "sm_90" else 12)]
    assert not spilled, spilled
    asked = {"sm_" + word.removesuffix("-real") for word in re.split(r"[ ;]", fused.cuda_architectures)}
    assert asked and asked == {architecture for _, architecture, *_ in kernels}
    for architecture in asked:
        names = [name for name, own, *_ in kernels if own == architecture]
        for word in ("neuron_forward", "neuron_backward", "neuron_backward_from_bits"):
            for io, mangled in IO_TYPES.items():  # of kernel<Cell, Io, ...>
                wanted = re.compile(rf"\d{word}_kernelINS_\d+[A-Za-z]+E{mangled}")
                assert any(map(wanted.search, names)), f"no {word}_kernel of {io} for {architecture}"
        works = "GatesForward", "GatesBackward", "GateWeights", "SpaceForward", "SpaceBackward", "KernelSums"
        for work in works:
            assert sum(f"teams_kernelINS_{len(work)}{work}I" in name for name in names) == 2, work
        for word in ("sum_tiles_kernel", "sum_partials_kernel"):
            assert sum(word in name for name in names) >= 2, f"{word} for {architecture}"
        for word in SEAM_KERNELS:
            for mangled in IO_TYPES.values():
                assert any(word in name and mangled in name for name in names), f"{word} of {mangled}"
