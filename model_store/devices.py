"""Which devices there are to run a model on."""

from __future__ import annotations

import torch

from model_store.errors import UnusableDeviceError


def check_device(device: str) -> None:
    """Raise `UnusableDeviceError` unless `device` names the CPU or a GPU that torch can use.

    `device` is `cpu`, `cuda`, or one GPU such as `cuda:0`. The message says which there are.
    """
    if device not in (there := usable_devices()):
        raise UnusableDeviceError(
            f"there is no device {device!r}: torch {torch.__version__} can use {', '.join(there)}"
        )


def usable_devices() -> list[str]:
    """Return the names of the devices that a model can run on here."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return ["cpu", *(["cuda"] if count else []), *(f"cuda:{index}" for index in range(count))]
