"""PyTorch, torchvision and timm, as the tests of the models take them."""

from tests.models.conftest import timm, torch, torchvision  # noqa: F401
