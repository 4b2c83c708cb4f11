"""A frozen decoder in two halves: the trunk below the first adapted layer, and the adapted layers above it.

The trunk does not depend on the adapter, so its activations serve every gradient step and every posterior sample.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from abmll.attention import use_cpu_attention
from abmll.errors import UnsupportedModelError
from abmll.posterior import AdapterConfig, Site
from abmll.rows import Rows

# The module-name rule: what each architecture calls a projection -> the name used in configurations and artifacts.
MODULE_NAMES = {
    "q_proj": "q", "k_proj": "k", "v_proj": "v", "query_key_value": "qkv", "qkv_proj": "qkv",
    "o_proj": "o", "out_proj": "o", "dense": "o",
    "gate_proj": "gate", "up_proj": "up", "gate_up_proj": "gate_up", "fc1": "up", "dense_h_to_4h": "up",
    "down_proj": "down", "fc2": "down", "dense_4h_to_h": "down",
}  # fmt: skip
# A fused projection is adapted when one of its parts is asked for.
FUSED = {"qkv": {"q", "k", "v"}, "gate_up": {"gate", "up"}}
FINAL_NORMS = ("norm", "final_layernorm", "final_layer_norm")


class Draw(Protocol):
    """What an adapter adds to the output of each site's base layer; see `noise.py` for the families."""

    def __call__(self, site: int, x: Tensor) -> Tensor:
        """The addition [R, L, d_out] at site number `site` for its input `x` [R, L, d_in]."""


@dataclass
class _Call:
    """The draw of the forward pass that is running; owned by one `Backbone` and empty between passes."""

    draw: Draw | None = None


class AdaptedLinear(nn.Module):
    """A base linear layer (quantised or not) plus whatever the running call's draw adds to it."""

    def __init__(self, base: nn.Module, site: int, call: _Call) -> None:
        super().__init__()
        self.base, self.site, self._call = base, site, call

    def forward(self, x: Tensor) -> Tensor:
        """Base output, plus the draw's addition if the running pass has one."""
        y: Tensor = self.base(x)
        draw = self._call.draw
        return y if draw is None else y + draw(self.site, x).to(y.dtype)


class Backbone:
    """A frozen `transformers` decoder whose layers from `config.first_layer` on take an adapter draw per call.

    Takes the model over: its chosen linear layers are wrapped in place. The draw is an argument of each call, so there is
    no active adapter between calls; calls must not overlap (one thread owns a backbone).
    Raises `UnsupportedModelError` where the module-name rule finds nothing to adapt.
    """

    def __init__(self, model: Any, config: AdapterConfig) -> None:
        self.model, self.config = model.eval().requires_grad_(False), config
        if self.device.type == "cpu":
            use_cpu_attention(model)
        decoder = model.base_model
        norm = next((name for name in FINAL_NORMS if hasattr(decoder, name)), None)
        layers = getattr(decoder, "layers", None)
        if norm is None or layers is None:
            raise UnsupportedModelError(f"{type(decoder).__name__} has no `layers` followed by a final norm")
        if not 0 <= config.first_layer < len(layers):
            raise UnsupportedModelError(
                f"first_layer {config.first_layer} is outside the model's {len(layers)} layers"
            )
        self._call = _Call()
        self.sites = _wrap(layers, config, self._call)
        self._decoder = decoder
        self._trunk = _part(decoder, list(layers)[: config.first_layer], norm)
        self._top = _part(decoder, list(layers)[config.first_layer :], None)
        self._head = model.get_output_embeddings()

    @property
    def device(self) -> torch.device:
        """Where the model lies."""
        device: torch.device = next(self.model.parameters()).device
        return device

    @property
    def max_tokens(self) -> int:
        """The longest sequence the model was built for."""
        return int(self.model.config.max_position_embeddings)

    def _mask(self, visible: Tensor) -> Tensor:
        """What attention adds to its scores [R, 1, L, keys]: 0 where `visible`, the dtype's lowest number elsewhere."""
        dtype = self.model.dtype
        return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(
            ~visible, torch.finfo(dtype).min
        )[:, None]

    @torch.no_grad()
    def trunk(self, rows: Rows) -> Tensor:
        """Activations [B, L, d] below the first adapted layer."""
        out = self._trunk(
            input_ids=rows.input_ids,
            attention_mask=self._mask(rows.visible),
            position_ids=rows.positions,
            use_cache=False,
        )
        hidden: Tensor = out.last_hidden_state
        return hidden

    def log_probs(self, hidden: Tensor, rows: Rows, draw: Draw | None, copies: int = 1) -> Tensor:
        """Log-probabilities [copies, M] of the rows' segments in fp32, from trunk activations `hidden` [B, L, d].

        With `copies` > 1 the batch is repeated as R = copies * B rows, copy by copy, for a draw that tells them apart.
        """
        mask, positions = self._mask(rows.visible), rows.positions
        if copies > 1:
            hidden, mask = hidden.repeat(copies, 1, 1), mask.repeat(copies, 1, 1, 1)
            positions = positions.repeat(copies, 1)
        with _running(self._call, draw):
            out = self._top(
                inputs_embeds=hidden, attention_mask=mask, position_ids=positions, use_cache=False
            )
        states = out.last_hidden_state.unflatten(0, (copies, -1))
        # Several segments start at the same prompt position: compute each position's logits once.
        length = rows.input_ids.shape[1]
        places, inverse = torch.unique(rows.score_row * length + rows.score_position, return_inverse=True)
        logits = self._head(states[:, places // length, places % length])
        tokens = torch.log_softmax(logits.float(), dim=-1)[:, inverse, rows.target]
        return tokens.new_zeros(copies, len(rows.segment_row)).index_add(1, rows.segment, tokens)

    @torch.no_grad()
    def next_logits(
        self, ids: Tensor, positions: Tensor, visible: Tensor, cache: Any, draw: Draw | None
    ) -> Tensor:
        """Logits [R, V] in fp32 behind the last token of `ids` [R, L], continuing and extending the KV `cache`.

        `visible` [R, L, keys] covers cached keys and the new ones.
        """
        with _running(self._call, draw):
            out = self._decoder(
                input_ids=ids,
                attention_mask=self._mask(visible),
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
            )
        logits: Tensor = self._head(out.last_hidden_state[:, -1]).float()
        return logits


class _running:  # noqa: N801 - reads as a verb at its one use
    """Sets the call's draw for the length of a `with` block."""

    def __init__(self, call: _Call, draw: Draw | None) -> None:
        self._call, self._draw = call, draw

    def __enter__(self) -> None:
        if self._call.draw is not None:
            raise RuntimeError("a backbone runs one pass at a time")
        self._call.draw = self._draw

    def __exit__(self, *_: object) -> None:
        self._call.draw = None


def _wrap(layers: Sequence[nn.Module], config: AdapterConfig, call: _Call) -> tuple[Site, ...]:
    sites: list[Site] = []
    for index, layer in enumerate(layers):
        if index < config.first_layer:
            continue
        for path, module in list(layer.named_modules()):
            parent, _, leaf = path.rpartition(".")
            name = MODULE_NAMES.get(leaf, "")
            if not (name in config.modules or FUSED.get(name, set()) & set(config.modules)):
                continue
            base = module.base if isinstance(module, AdaptedLinear) else module
            site = Site(index, name, base.in_features, base.out_features)  # type: ignore[arg-type]
            setattr(layer.get_submodule(parent), leaf, AdaptedLinear(base, len(sites), call))
            sites.append(site)
    if not sites:
        raise UnsupportedModelError(f"none of the modules {', '.join(config.modules)} was found")
    return tuple(sites)


def _part(decoder: Any, layers: list[nn.Module], norm_to_skip: str | None) -> Any:
    """The decoder's own forward over some of its layers: a shallow copy that shares every weight."""
    part = copy.copy(decoder)
    part._modules = dict(decoder._modules)
    part._modules["layers"] = nn.ModuleList(layers)
    if norm_to_skip is not None:
        part._modules[norm_to_skip] = nn.Identity()
    return part
