"""Which devices there are to run a model on, and what it means that their memory is short."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

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


def says_memory_is_short(error: RuntimeError) -> bool:
    """Return whether `error` says that a device, or the CPU's allocator, has no memory left."""
    text = str(error)
    return (
        isinstance(error, torch.OutOfMemoryError)
        or "can't allocate memory" in text
        or "CUDA error: out of memory" in text
    )


@contextmanager
def model_has_to_fit(device: str) -> Iterator[None]:
    """Raise `UnusableDeviceError` where the memory of `device` is short while a model is loaded to
    it.
    """
    try:
        yield
    except RuntimeError as error:
        if not says_memory_is_short(error):
            raise
        said = ". ".join(str(error).splitlines()[0].split(". ")[:3])  # of torch: asked for, there, free
        raise UnusableDeviceError(
            f"the model does not fit into the memory of {device}: {said.rstrip('.')}; choose a smaller "
            "--model, --quantisation nf4 or another --device, or end what else uses this one"
        ) from error
