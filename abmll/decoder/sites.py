"""Sites of a model: the linear layers that an adapter layout names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from abmll.decoder.layout import AdapterLayout, Site
from abmll.errors import UnsupportedModelError

# Rule of module names: the name of a projection in an architecture, and its name in configurations
# and artifacts.
MODULE_NAMES = {
    "q_proj": "q", "k_proj": "k", "v_proj": "v", "query_key_value": "qkv", "qkv_proj": "qkv",
    "o_proj": "o", "out_proj": "o", "dense": "o",
    "gate_proj": "gate", "up_proj": "up", "gate_up_proj": "gate_up", "fc1": "up", "dense_h_to_4h": "up",
    "down_proj": "down", "fc2": "down", "dense_4h_to_h": "down",
}  # fmt: skip
# A fused projection is adapted where a layout names one of its parts.
FUSED = {"qkv": {"q", "k", "v"}, "gate_up": {"gate", "up"}}


def decoder_layers(model: Any) -> nn.ModuleList:
    """Return the decoder layers of a causal `transformers` model.

    Raises `UnsupportedModelError` where the model has no list `layers`.
    """
    layers = getattr(model.base_model, "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise UnsupportedModelError(f"{type(model.base_model).__name__} has no list of `layers`")
    return layers


def walk_sites(model: Any, layout: AdapterLayout) -> Iterator[tuple[str, Site, nn.Module]]:
    """Yield the path, the site and the module of every linear layer that `layout` adapts, in order.

    A path is an argument of `model.get_submodule`. Weights are not read, so the model may be on the
    device `meta`. The model must not be wrapped by a `Backbone`. Raises `UnsupportedModelError` as
    `decoder_layers` does.
    """
    layers = decoder_layers(model)
    prefix = next(name for name, module in model.named_modules() if module is layers)
    # A list, because the caller may replace the module that it gets.
    for path, module in list(layers.named_modules(prefix=prefix)):
        index, _, inside = path.removeprefix(f"{prefix}.").partition(".")
        name = rule_name(inside.rpartition(".")[2], layout.modules)
        if name and int(index) >= layout.first_layer:
            yield path, Site(int(index), name, int(module.in_features), int(module.out_features)), module


def rule_name(leaf: str, modules: Sequence[str]) -> str:
    """Return the rule's name of the projection that an architecture calls `leaf`.

    The name is empty where the projection is not one of `modules`.
    """
    name = MODULE_NAMES.get(leaf, "")
    return name if name in modules or FUSED.get(name, set()) & set(modules) else ""
