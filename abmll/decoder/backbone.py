"""A frozen decoder in two halves: the trunk below the first adapted layer, and the adapted layers above it.

The trunk does not depend on the adapter, so its activations serve every gradient step and every posterior sample.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from types import MethodType
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from abmll.decoder.architectures import is_like_llamas
from abmll.decoder.attention import Layout, additive_mask, use_packed_attention
from abmll.decoder.layout import AdapterLayout, Site
from abmll.decoder.norms import use_lean_norms
from abmll.decoder.quantised import FrozenLinear, is_quantised
from abmll.decoder.rows import Rows
from abmll.decoder.sites import decoder_layers, walk_sites
from abmll.decoder.swiglu import use_lean_gates
from abmll.errors import UnsupportedModelError
from abmll.text.prompting import EncodedPrompt

FINAL_NORMS = ("norm", "final_layernorm", "final_layer_norm")


class Draw(Protocol):
    """How the adapters of a batch change each site's layer; `posterior/noise` has the families."""

    def __call__(self, site: int, x: Tensor, layer: FrozenLinear) -> Tensor:
        """The adapted layer's output [N, d_out] at site number `site` for the batch's tokens `x` [N, d_in]."""

    def narrowed(self, row_tokens: Sequence[int]) -> Draw | None:
        """The same draw for a part of every row's tokens, `row_tokens[i]` of row i; `None` where it depends on all."""


@dataclass
class Call:
    """The forward pass that is running: its draw, and from where in the last layer on only some tokens are computed.

    Owned by one `Backbone`, empty between passes.
    """

    draw: Draw | None = None
    tokens: Tensor | None = None  # those that count behind the last layer's attention
    narrowed: Draw | None = None  # the draw for them


class AdaptedLinear(nn.Module):
    """A frozen linear layer (quantised or not) that the running call's draw may change."""

    def __init__(self, frozen: FrozenLinear, site: int, call: Call) -> None:
        super().__init__()
        self.frozen, self.site, self._call = frozen, site, call

    def forward(self, x: Tensor) -> Tensor:
        """The frozen output, or what the running pass's draw makes of it."""
        draw = self._call.draw
        if draw is None:
            frozen: Tensor = self.frozen(x)
            return frozen
        return draw(self.site, x.flatten(0, -2), self.frozen).view(*x.shape[:-1], -1)


class _Narrowing(nn.Module):
    """The last layer's output projection of attention: where the pass says so, it drops the tokens that nobody reads."""

    def __init__(self, projection: nn.Module, call: Call) -> None:
        super().__init__()
        self.projection, self._call = projection, call

    def forward(self, x: Tensor) -> Tensor:
        """[1, N, d] to the output for the chosen tokens [1, P, d_out]."""
        if self._call.tokens is not None:
            x = x.index_select(1, self._call.tokens)
            self._call.draw = self._call.narrowed
        out: Tensor = self.projection(x)
        return out


def narrow_last_layer(layer: Any, call: Call) -> bool:
    """Have the layer compute what is behind its attention for `call.tokens` alone; whether its architecture is known."""
    if not is_like_llamas(layer, "DecoderLayer"):
        return False
    layer.self_attn.o_proj = _Narrowing(layer.self_attn.o_proj, call)

    def forward(self: Any, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        mixed, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **kwargs)
        kept = hidden_states if call.tokens is None else hidden_states.index_select(1, call.tokens)
        kept = kept + mixed
        out: Tensor = kept + self.mlp(self.post_attention_layernorm(kept))
        return out

    layer.forward = MethodType(forward, layer)
    return True


def _widen(layer: Any) -> None:
    """Undo `narrow_last_layer`: the model is being wrapped anew, for another backbone."""
    projection = getattr(getattr(layer, "self_attn", None), "o_proj", None)
    if isinstance(projection, _Narrowing):
        layer.self_attn.o_proj = projection.projection
        del layer.forward


class Backbone:
    """A frozen `transformers` decoder whose layers from `layout.first_layer` on take an adapter draw per call.

    Takes the model over: its layers are wrapped in place. The draw is an argument of each call, so there is
    no active adapter between calls; calls must not overlap (one thread owns a backbone).
    Raises `UnsupportedModelError` where the module-name rule finds nothing to adapt.
    """

    def __init__(self, model: Any, layout: AdapterLayout) -> None:
        self.model, self.layout = model.eval().requires_grad_(False), layout
        use_packed_attention(model)
        decoder = model.base_model
        norm = next((name for name in FINAL_NORMS if hasattr(decoder, name)), None)
        layers = decoder_layers(model)
        if norm is None:
            raise UnsupportedModelError(f"{type(decoder).__name__} has no `layers` followed by a final norm")
        if not 0 <= layout.first_layer < len(layers):
            raise UnsupportedModelError(
                f"first_layer {layout.first_layer} is outside the model's {len(layers)} layers"
            )
        self._call = Call()
        _unwrap(layers)
        _freeze_quantised(layers)
        self.sites = _adapt(model, layout, self._call)
        use_lean_norms(decoder)
        use_lean_gates(decoder)
        self._narrows = narrow_last_layer(layers[-1], self._call)
        self._trunk = _part(decoder, list(layers)[: layout.first_layer], norm)
        self._top = _part(decoder, list(layers)[layout.first_layer :], None)
        self._head = model.get_output_embeddings()
        self.offsets: dict[EncodedPrompt, Tensor] = {}  # see `decoder/references.py`

    @property
    def device(self) -> torch.device:
        """Where the model lies."""
        device: torch.device = next(self.model.parameters()).device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """Of activations."""
        dtype: torch.dtype = self._head.weight.dtype
        return dtype

    @property
    def max_tokens(self) -> int:
        """The longest sequence the model was built for."""
        return int(self.model.config.max_position_embeddings)

    def compile_trunk(self, backend: str = "inductor") -> None:
        """Have `torch.compile` fuse the trunk's MLPs and norms, for any number of tokens; takes effect on the next passes.

        Attention stays as it is: its layout differs from batch to batch. The adapted layers do too: their draw is data.
        """
        for layer in self._trunk.layers:
            for name, part in layer.named_children():
                if not name.endswith(("attn", "attention")):
                    part.compile(dynamic=True, backend=backend)

    @torch.no_grad()
    def trunk(self, rows: Rows) -> Tensor:
        """Activations [N, d] of packed rows below the first adapted layer."""
        hidden: Tensor = self._packed(self._trunk, rows, input_ids=rows.input_ids[None])
        return hidden

    def log_probs(self, hidden: Tensor, rows: Rows, draw: Draw | None) -> Tensor:
        """Log-probabilities [M] of the rows' segments in fp32, from trunk activations `hidden` [N, d]."""
        narrowed = draw.narrowed(rows.scored_by_row) if self._narrows and draw is not None else None
        narrow = self._narrows and (draw is None or narrowed is not None)
        with _running(self._call, draw, rows.scored if narrow else None, narrowed):
            states = self._packed(self._top, rows, inputs_embeds=hidden[None])
        logits: Tensor = self._head(states if narrow else states[rows.scored]).float()
        tokens = logits[rows.place, rows.target] - logits.logsumexp(-1)[rows.place]
        return tokens.new_zeros(rows.segments).index_add(0, rows.segment, tokens)

    def _packed(self, part: Any, rows: Rows, **inputs: Tensor) -> Tensor:
        """Run some layers over packed rows as one sequence; the layout tells attention where rows begin and end."""
        unused_mask = torch.zeros(1, 1, 1, 1, dtype=self.dtype, device=self.device)
        layout = Layout.of(rows, self.dtype)
        out = part(
            attention_mask=unused_mask,
            position_ids=rows.positions[None],
            use_cache=False,
            layout=layout,
            **inputs,
        )
        hidden: Tensor = out.last_hidden_state[0]
        return hidden

    @torch.no_grad()
    def continue_trunk(self, ids: Tensor, positions: Tensor, visible: Tensor, cache: Any) -> Tensor:
        """Trunk activations [B, L, d] of tokens `ids` [B, L] behind, and added to, the KV `cache`.

        `visible` [B, L, keys] covers cached keys and the new ones.
        """
        mask = additive_mask(visible, self.dtype)
        out = self._trunk(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
        )
        hidden: Tensor = out.last_hidden_state
        return hidden

    @torch.no_grad()
    def next_logits(
        self, hidden: Tensor, positions: Tensor, visible: Tensor, cache: Any, draw: Draw | None
    ) -> Tensor:
        """Logits [R, V] in fp32 behind the last token of trunk activations [R, L, d]; extends the adapted layers' `cache`."""
        mask = additive_mask(visible, self.dtype)
        with _running(self._call, draw):
            out = self._top(
                inputs_embeds=hidden,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
            )
        logits: Tensor = self._head(out.last_hidden_state[:, -1]).float()
        return logits


class _running:  # noqa: N801 - reads as a verb at its one use
    """Sets the call's draw for the length of a `with` block."""

    def __init__(
        self, call: Call, draw: Draw | None, tokens: Tensor | None = None, narrowed: Draw | None = None
    ) -> None:
        self._call, self._new = call, Call(draw, tokens, narrowed)

    def __enter__(self) -> None:
        if self._call.draw is not None or self._call.tokens is not None:
            raise RuntimeError("a backbone runs one pass at a time")
        self._set(self._new)

    def __exit__(self, *_: object) -> None:
        self._set(Call())

    def _set(self, new: Call) -> None:
        self._call.draw, self._call.tokens, self._call.narrowed = new.draw, new.tokens, new.narrowed


def _unwrap(layers: nn.ModuleList) -> None:
    """Undo what an earlier `Backbone` did to the layers, but for quantised layers, which stay `FrozenLinear`."""
    _widen(layers[-1])
    for path, module in list(layers.named_modules()):
        if isinstance(module, AdaptedLinear):
            base = module.frozen.base
            _replace(layers, path, module.frozen if is_quantised(base) else base)


def _freeze_quantised(layers: nn.ModuleList) -> None:
    """Make the dense weight of every quantised layer appear once a pass, whether the layer is adapted or not."""
    for path, module in list(layers.named_modules()):
        if is_quantised(module) and not isinstance(
            layers.get_submodule(path.rpartition(".")[0]), FrozenLinear
        ):
            _replace(layers, path, FrozenLinear(module))


def _adapt(model: Any, layout: AdapterLayout, call: Call) -> tuple[Site, ...]:
    sites: list[Site] = []
    for path, site, module in walk_sites(model, layout):
        frozen = module if isinstance(module, FrozenLinear) else FrozenLinear(module)
        _replace(model, path, AdaptedLinear(frozen, len(sites), call))
        sites.append(site)
    if not sites:
        raise UnsupportedModelError(f"none of the modules {', '.join(layout.modules)} was found")
    return tuple(sites)


def _replace(root: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, leaf = path.rpartition(".")
    setattr(root.get_submodule(parent), leaf, module)


def _part(decoder: Any, layers: list[nn.Module], norm_to_skip: str | None) -> Any:
    """The decoder's own forward over some of its layers: a shallow copy that shares every weight."""
    part = copy.copy(decoder)
    part._modules = dict(decoder._modules)
    part._modules["layers"] = nn.ModuleList(layers)
    if norm_to_skip is not None:
        part._modules[norm_to_skip] = nn.Identity()
    return part
