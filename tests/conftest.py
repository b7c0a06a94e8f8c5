"""Fixtures, and the reasons for which a test may be skipped."""

import importlib.util
import os
from pathlib import Path

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic cuBLAS

import browsing
import pytest
import torch

from attsnn import _extension
from attsnn.engine.memory import keep_memory

SHIM = str(Path(__file__).parent / "shim")  # see sitecustomize.py there
if SHIM not in os.environ.get("PYTHONPATH", "").split(os.pathsep):
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [SHIM, os.environ.get("PYTHONPATH")]))
    _spec = importlib.util.spec_from_file_location("shim", f"{SHIM}/sitecustomize.py")
    _shim = importlib.util.module_from_spec(_spec)  # kept: what it declares lasts as long as it does
    _spec.loader.exec_module(_shim)

keep_memory()  # to fault the pages in again takes a fourth of the time of a network in float64

REQUIRE = os.environ.get("ATTSNN_REQUIRE", "").split(",")  # fused, cuda: what must not be skipped
SKIPS = (
    "no CUDA GPU",
    "the kernels are not built",
    "extra plot",
    "extra vision",
    "extra imagenet",
    "extra mat",
    "extra docs",
    "extra fid",
    "extra nir",
    "no nvcc",
    "no nm",
    "no objdump",
    "no wide instruction set",
    "no AVX2",
    "no AVX-512",
    "less than 12 GiB free",
    "no git checkout",
    "no SpikingJelly",
    "no snnTorch",
    "no Norse",
    "no onnx",
    "no webdataset",
    "no Chromium",
)


# What takes longest, first: a worker that meets one of these last works on when the other has nothing left.
LONGEST = [
    f"test_{subject}.py"
    for subject in (
        *("train_imagenet", "bench", "golden", "neuron", "seam", "build", "cuda_on_host", "seam_on_host"),
        *(
            "pfa_on_host",
            "ms_resnet",
            "ops",
            "models",
            "pfa",
            "engine",
            "processes",
            "train_dvs",
            "pfa_models",
        ),
    )
]


def pytest_collection_modifyitems(items):
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


@pytest.fixture(params=["reference", "fused"])
def backend(request):
    if request.param == "fused" and _extension.compiled() is None:
        pytest.skip("the kernels are not built")
    return request.param


@pytest.fixture
def fused():
    """The compiled module; the test is skipped where there is none."""
    if _extension.compiled() is None:
        pytest.skip("the kernels are not built")
    return _extension.compiled()


@pytest.fixture(scope="module")
def without_curves():
    """They take longer than the epochs of a test, and so do the gates; test_engine_parts.py, test_plot.py and
    test_train_dvs.py draw them.
    """
    from attsnn.engine import pictures

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures, "curves", lambda *_: [])
        patch.setattr(pictures, "gates", lambda *_, **__: [])
        yield


@pytest.fixture(scope="session")
def browser():
    yield from browsing.start()


@pytest.fixture(autouse=True)
def _seeded_and_deterministic():
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)  # empty tensors hold NaN: an output left unwritten shows
    yield
    torch.use_deterministic_algorithms(False)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """A skip for a reason that is not listed, or of what ATTSNN_REQUIRE names, is a failure."""
    outcome = yield
    report = outcome.get_result()
    if not report.skipped or hasattr(report, "wasxfail"):
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    required = ("fused" in REQUIRE and "not built" in reason) or (
        "cuda" in REQUIRE and "no CUDA GPU" in reason
    )
    if required or not any(allowed in reason for allowed in SKIPS):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped, which is not allowed here: {reason}"
