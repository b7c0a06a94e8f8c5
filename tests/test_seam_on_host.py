"""The CUDA kernels of the seams without a GPU: on the host under the sanitizers, against plain loops.

Element-wise results are equal to the bit, sums to rounding, extrema and their places exactly.
"""

import on_host
import pytest

TYPES = ("float", "double", "bfloat16", "half")
SEAM = [
    *(f"{kind} {what}" for kind in TYPES for what in ("statistics", "sums", "grad")),
    *(f"{kind} {what}, channels last" for kind in TYPES for what in ("sums", "grad")),
    *("far", "ties", "odd values", "uneven statistics", "uneven sums", "no spatial map", "pools", "no pool"),
    *(f"{what}, channels last" for what in ("ties", "odd values", "uneven statistics", "uneven sums")),
    *(f"{what}, channels last" for what in ("no spatial map", "pools", "no pool")),
    *("a block a plane", "no gamma", "no extrema", "one pixel"),
    *("more blocks than a launch takes", "more steps than a launch takes"),
]
GATES = ["norm", "float", "double", "one gate", "space", "more blocks than a launch takes"]
NEURON = [*TYPES, "shortcut", "bits", "steps", "tiles", "learned", "surrogates", "chunks", "counts", "levels"]
NEURON += ["more blocks than a launch takes"]
# Every kernel whose threads wait for each other, once; the type changes nothing about that.
RACES = [
    *(("seam", f"float {what}") for what in ("statistics", "sums", "sums, channels last")),
    *(("seam", case) for case in ("a block a plane", "uneven statistics, channels last")),
    *(("seam_neuron", case) for case in ("float", "bits")),
    *(("gates", case) for case in ("norm", "float", "space")),
]


@pytest.fixture(scope="module")
def programs():
    return on_host.build("seam")


@pytest.mark.parametrize(("program", "listed"), [("seam", SEAM), ("seam_neuron", NEURON), ("gates", GATES)])
def test_every_case_under_address_and_undefined(programs, program, listed):
    assert sorted(on_host.cases(programs / f"{program}_address")) == sorted(listed)
    for case in listed:
        on_host.must_be_equal(programs / f"{program}_address", case)


@pytest.mark.parametrize(("program", "case"), RACES)
def test_no_race(programs, program, case):
    on_host.must_be_equal(programs / f"{program}_thread", case)


def test_the_kernels_fit_a_block(programs, fused):
    """Their threads, registers and shared memory, as ptxas compiled them and as their drivers ask."""
    if not fused.cuda_runtime:
        pytest.skip("no nvcc")
    on_host.must_fit("seam", programs)
