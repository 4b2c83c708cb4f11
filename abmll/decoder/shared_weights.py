"""Copies of a model that share its weights, so that several backbones can wrap one base."""

from __future__ import annotations

import copy
from types import MethodType
from typing import TypeVar

from torch import nn

AnyModule = TypeVar("AnyModule", bound=nn.Module)


def with_shared_weights(module: AnyModule) -> AnyModule:
    """Copy a module and all below it, with the same parameters and buffers.

    The copy takes no memory for weights. What is replaced or set in one of the two is not in the
    other. A module that stands in two places is one module in the copy, too.
    """
    copies: dict[int, nn.Module] = {}

    def copied(original: nn.Module) -> nn.Module:
        if id(original) in copies:
            return copies[id(original)]
        own = copies[id(original)] = copy.copy(original)
        for name, value in list(vars(own).items()):
            if isinstance(value, dict):
                own.__dict__[name] = value.copy()
            elif isinstance(value, MethodType) and value.__self__ is original:
                own.__dict__[name] = MethodType(value.__func__, own)
        for name, child in original._modules.items():
            own._modules[name] = None if child is None else copied(child)
        return own

    return copied(module)  # type: ignore[return-value]
