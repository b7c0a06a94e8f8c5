"""For tests only: lets the CPU build of torch import the torchvision of PyPI, which is built for CUDA.

Importing that one fails while it describes its operators `nms` and `qnms` to a torch that lacks them: declare
them first. Python imports this file at its start where the folder is on PYTHONPATH; conftest.py puts it there
for the processes that tests start, and imports it for itself. torch is loaded only if torchvision is.
"""

import importlib.abc
import importlib.util
import sys

_keep = []  # a library's declarations last as long as the object


class _BeforeTorchvision(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch

            if torch.version.cuda is None:
                _keep.append(torch.library.Library("torchvision", "DEF"))
                for op in ("nms", "qnms"):
                    _keep[0].define(f"{op}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return None


sys.meta_path.insert(0, _BeforeTorchvision())
