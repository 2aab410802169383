"""PyTorch's collections of networks, also where torchvision's build is for another device."""

import sys
from types import ModuleType


def torchvision() -> ModuleType:
    """torchvision.

    A build for another device than PyTorch's cannot load its operators, and its import stops at
    the shapes of two of them. No network here uses any, so declaring the two is enough.
    """
    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::nms does not exist" not in str(error):
            raise
        import torch

        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "FRAGMENT")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision

        torchvision._operators = library  # alive as long as the module: deleting it undeclares them
    module: ModuleType = torchvision
    return module


def timm() -> ModuleType:
    """timm, whose import needs torchvision's."""
    torchvision()
    import timm

    module: ModuleType = timm
    return module
