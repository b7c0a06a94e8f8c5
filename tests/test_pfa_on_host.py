"""The CUDA kernels of projected full attention without a GPU: run on the host under the sanitizers, against
plain loops.
"""

import on_host
import pytest

CASES = [
    *("float", "double", "bfloat16", "half"),
    "chunks",  # of rows, whose sums are added up
    "one block walks",
    "memory",  # misaligned, channels-last, batch first, a still image; no gradient of x
    "one of all",
    "more blocks than a launch takes",
]
RACES = ["one block walks"]


@pytest.fixture(scope="module")
def programs():
    return on_host.build("pfa")


@pytest.mark.parametrize(
    ("case", "sanitizer"),
    [*((case, "address") for case in CASES), *((case, "thread") for case in RACES)],
)
def test_kernels_equal_plain_loops(programs, case, sanitizer):
    on_host.must_be_equal(programs / f"pfa_{sanitizer}", case)


def test_every_case_is_run(programs):
    assert sorted(on_host.cases(programs / "pfa_address")) == sorted(CASES)


def test_the_kernels_fit_a_block(programs, fused):
    if not fused.cuda_runtime:
        pytest.skip("no nvcc")
    on_host.must_fit("pfa", programs)
