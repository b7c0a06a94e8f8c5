#!/usr/bin/env bash
# The binary that is built here under other versions of torch: tests/torch_versions.sh [VERSION ...]
# Downloads gigabytes into build/torch-VERSION, so that no CI runs it. The last line of each is the outcome.
set -euo pipefail
cd "$(dirname "$0")/.."
versions=("$@")
[ $# -gt 0 ] || versions=(2.10.0 2.13.0 2.14.1) # the oldest that is served, that of requirements.txt, the newest
tests=(tests/test_neuron.py tests/test_ops.py tests/test_seam.py tests/test_pool.py tests/test_pfa.py tests/test_tools.py)

for version in "${versions[@]}"; do
  place=build/torch-$version
  if ! [ -e "$place/installed" ]; then
    "${PYTHON:-python3}" -m venv --clear "$place"
    grep -v -e '^torch' -e '^#' -e webdataset -e sphinx -e myst -e furo requirements.txt > "$place/others.txt"
    "$place/bin/python" -m pip install --quiet --disable-pip-version-check "torch==$version"
    "$place/bin/python" -m pip install --quiet --disable-pip-version-check -r "$place/others.txt"
    touch "$place/installed"
  fi
  "$place/bin/python" -m pytest -q -p no:cacheprovider "${tests[@]}" > "$place/tests.log" 2>&1 || true
  echo "torch $("$place/bin/python" -c 'import torch; print(torch.__version__)'): $(tail -n 1 "$place/tests.log")"
done
