"""The CUDA kernels without a GPU: run on the host under the sanitizers, and what the compiler says of
them.
"""

import re

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
    "own amount",
    "counts",
    "levels",
    "repeated",
]  # and "soft spikes"


# The thread sanitizer looks at who writes where and who waits for whom, which the type does not change.
RACES = ["float", "bits", "learned"]


REFUSED = {
    "no threads": "0 threads a block along x, a device takes 1 to 1024",
    "too many threads": "1025 threads a block along x, a device takes 1 to 1024",
    "too many threads in all": "1056 threads a block, a device takes 1 to 1024",
    "a block too deep": "65 threads a block along z, a device takes 1 to 64",
    "an empty grid": "0 blocks along y, a device takes 1 to 65535",
    "x too long": "2147483648 blocks along x, a device takes 1 to 2147483647",
    "x that dim3 would cut to one": "4294967297 blocks along x, a device takes 1 to 2147483647",
    "y too long": "65536 blocks along y, a device takes 1 to 65535",
    "z too long": "65536 blocks along z, a device takes 1 to 65535",
    "too much shared memory": "166913 bytes of shared memory a block, a device takes 0 to 166912",
    "longer than a test allows": "3 blocks along x, a device takes 1 to 2",
}


@pytest.fixture(scope="module")
def programs():
    return on_host.build("neuron")


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


def test_what_a_device_would_refuse_is_refused(programs):
    program = programs / "launch_address"
    assert sorted(on_host.cases(program)) == sorted([*REFUSED, "at the limits"])
    for case, sentence in REFUSED.items():
        done = on_host.run(program, case)
        assert done.returncode != 0 and not done.stdout, case
        assert done.stderr == f"a launch asks for {sentence}\n", case
    on_host.must_be_equal(program, "at the limits")


SEAM_KERNELS = (
    "fold_planes_kernel",
    "fold_channels_kernel",
    "fold_rows_kernel",
    "fold_steps_kernel",
    "grad_kernel",
    "SummingSink",
    "pfa_means_kernel",
    "pfa_apply_kernel",
    "pfa_reduce_kernel",
    "pfa_gradient_kernel",
)
IO_TYPES = {"float": "f", "double": "d", "Half": "N3c104HalfE", "BFloat16": "N3c108BFloat16E"}  # mangled


def test_kernels_compile_without_spills(fused):
    """ptxas' report of the build: no kernel spills registers, for other architectures than sm_90 more than
    three, and those of every type and architecture that was asked for are there.
    """
    if not fused.cuda_runtime:
        pytest.skip("no nvcc")
    kernels = on_host.compiled()
    spilled = [k for k in kernels if k.spilled > (0 if k.architecture == "sm_90" else 12)]
    assert not spilled, spilled
    asked = {"sm_" + word.removesuffix("-real") for word in re.split(r"[ ;]", fused.cuda_architectures)}
    assert asked and asked == {kernel.architecture for kernel in kernels}
    for architecture in asked:
        names = [kernel.mangled for kernel in kernels if kernel.architecture == architecture]
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


def test_the_kernels_fit_a_block(programs, fused):
    """Threads, registers and shared memory of the neurons' kernels; test_seam_on_host.py has the others."""
    if not fused.cuda_runtime:
        pytest.skip("no nvcc")
    assert {kernel.family for kernel in on_host.compiled()} == set(on_host.FAMILIES)
    on_host.must_fit("neuron", programs)


def test_what_does_not_fit_is_named():
    kernel = on_host.Kernel("seam", "_ZN6attsnn11each_kernelE", "sm_80", 128, 40960, 0)
    assert kernel.name == "each_kernel" and not on_host.unfit(kernel, 512, 512, 123 * 1024)
    assert "513 threads where __launch_bounds__ says 512" in on_host.unfit(kernel, 512, 513, 0)
    assert "69632 registers a block" in on_host.unfit(kernel._replace(registers=129), 512, 512, 0)
    assert "49153 bytes of static arrays, there are" in on_host.unfit(kernel._replace(shared=49153), 1, 1, 0)
    too_much = 123 * 1024 + 1
    assert "of dynamic shared memory, there are 166912" in on_host.unfit(kernel, 512, 512, too_much)
    assert not on_host.unfit(kernel._replace(architecture="sm_90"), 512, 512, too_much)
