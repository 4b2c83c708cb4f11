"""Frozen decoder in two parts: the trunk below the first adapted layer, and the top from there on.

The trunk does not depend on the adapter. So its activations are computed once for all gradient
steps and all samples of a posterior.
"""

from __future__ import annotations

import copy
from bisect import bisect_left
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
from abmll.decoder.swiglu import use_lean_swiglu
from abmll.decoder.vocabulary import token_log_probs
from abmll.errors import UnsupportedModelError
from abmll.text.prompting import EncodedPrompt

FINAL_NORMS = ("norm", "final_layernorm", "final_layer_norm")


class Draw(Protocol):
    """Adapters of one batch: what each site's layer computes (families: `posterior/noise`)."""

    def __call__(self, site: int, x: Tensor, layer: FrozenLinear) -> Tensor:
        """Return the adapted output [N, d_out] of site number `site` for tokens `x` [N, d_in]."""

    def narrowed(self, row_tokens: Sequence[int]) -> Draw | None:
        """Return the same draw for fewer tokens, `row_tokens[i]` of row i.

        The result is None where the draw depends on all tokens.
        """


@dataclass
class Call:
    """State of the forward pass that is running; it belongs to one `Backbone`.

    Between passes it is empty. The draw numbers its sites from `first_site` of the backbone. Behind
    the attention of the last layer, only `tokens` are computed, with the draw `narrowed`; None
    means all tokens.
    """

    draw: Draw | None = None
    first_site: int = 0
    tokens: Tensor | None = None
    narrowed: Draw | None = None


class AdaptedLinear(nn.Module):
    """Frozen linear layer (quantised or not) that the draw of the running pass may change."""

    def __init__(self, frozen: FrozenLinear, site: int, call: Call) -> None:
        super().__init__()
        self.frozen, self.site, self._call = frozen, site, call

    def forward(self, x: Tensor) -> Tensor:
        """Return the output with the draw of the running pass, or the frozen output without one."""
        draw = self._call.draw
        if draw is None:
            frozen: Tensor = self.frozen(x)
            return frozen
        site = self.site - self._call.first_site
        return draw(site, x.flatten(0, -2), self.frozen).view(*x.shape[:-1], -1)


class _Narrowing(nn.Module):
    """Output projection of the last layer's attention, which drops tokens that are not read later.

    `Call.tokens` names the tokens to keep.
    """

    def __init__(self, projection: nn.Module, call: Call) -> None:
        super().__init__()
        self.projection, self._call = projection, call

    def forward(self, x: Tensor) -> Tensor:
        """Return the output [1, P, d_out] of the P tokens to keep, from `x` [1, N, d] of all."""
        if self._call.tokens is not None:
            x = x.index_select(1, self._call.tokens)
            self._call.draw = self._call.narrowed
        out: Tensor = self.projection(x)
        return out


def narrow_last_layer(layer: Any, call: Call) -> bool:
    """Make a layer compute only `call.tokens` behind its attention.

    Returns False, and changes nothing, for an architecture that is not built like Llama.
    """
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
    """Undo `narrow_last_layer`, for a model that is wrapped again by another backbone."""
    projection = getattr(getattr(layer, "self_attn", None), "o_proj", None)
    if isinstance(projection, _Narrowing):
        layer.self_attn.o_proj = projection.projection
        del layer.forward


class Backbone:
    """Frozen `transformers` decoder whose layers from `layout.first_layer` on take a draw per call.

    A call runs some of the layers: `start` is the first of them, and `stop` the first one after
    them. Its draw has one site for each of `sites_of(start, stop)`. A backbone owns its model: it
    wraps the layers in place. The draw is an argument of each call, so no adapter is active between
    calls. Calls must not overlap: one thread owns a backbone.
    Raises `UnsupportedModelError` where the model has no list `layers` or no known final norm,
    `first_layer` is not one of its layers, or the rule of module names finds nothing to adapt.
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
        use_lean_swiglu(decoder)
        self._narrows = narrow_last_layer(layers[-1], self._call)
        self._decoder, self._layers, self._norm = decoder, list(layers), norm
        self._parts: dict[tuple[int, int], Any] = {}
        self._head = model.get_output_embeddings()
        self.offsets: dict[EncodedPrompt, Tensor] = {}  # see `decoder/option_references.py`

    @property
    def device(self) -> torch.device:
        """Return the device of the model."""
        device: torch.device = next(self.model.parameters()).device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """Return the dtype of activations."""
        dtype: torch.dtype = self._head.weight.dtype
        return dtype

    @property
    def max_tokens(self) -> int:
        """Return the length in tokens of the longest sequence that the model was built for."""
        return int(self.model.config.max_position_embeddings)

    def compile_trunk(self, backend: str = "inductor") -> None:
        """Compile the trunk's MLPs and norms with `torch.compile`, for any number of tokens.

        The compilation itself happens in the passes that follow. Attention is not compiled because
        its layout differs between batches, nor are the adapted layers because their draw does.
        """
        for layer in self._layers[: self.layout.first_layer]:
            for name, part in layer.named_children():
                if not name.endswith(("attn", "attention")):
                    part.compile(dynamic=True, backend=backend)

    @property
    def depth(self) -> int:
        """Return the number of layers."""
        return len(self._layers)

    def sites_of(self, start: int, stop: int | None = None) -> tuple[Site, ...]:
        """Return the adapted sites of the layers from `start` to before `stop`, or to the last."""
        return self.sites[self.span_of(start, stop)]

    def span_of(self, start: int, stop: int | None = None) -> slice:
        """Return where `sites_of(start, stop)` are among all sites."""
        numbers = [
            bisect_left(self.sites, layer, key=lambda site: site.layer)
            for layer in (start, stop or self.depth)
        ]
        return slice(*numbers)

    @torch.no_grad()
    def trunk(self, rows: Rows) -> Tensor:
        """Return the activations [N, d] of packed rows below the first adapted layer."""
        part = self._part(0, self.layout.first_layer)
        hidden: Tensor = self._packed(part, rows, input_ids=rows.input_ids[None])
        return hidden

    @torch.no_grad()
    def states(self, hidden: Tensor, rows: Rows, draw: Draw | None, start: int, stop: int) -> Tensor:
        """Return the activations [N, d] below layer `stop`, from those below layer `start`."""
        with _running(self._call, Call(draw, self.span_of(start).start)):
            return self._packed(self._part(start, stop), rows, inputs_embeds=hidden[None])

    def log_probs(self, hidden: Tensor, rows: Rows, draw: Draw | None, start: int | None = None) -> Tensor:
        """Return the log-probabilities [M] of the rows' segments, in nats and in fp32.

        `hidden` [N, d] are the activations below layer `start`, by default those of the trunk.
        """
        start = self.layout.first_layer if start is None else start
        narrowed = draw.narrowed(rows.scored_by_row) if self._narrows and draw is not None else None
        narrow = self._narrows and (draw is None or narrowed is not None)
        call = Call(draw, self.span_of(start).start, rows.scored if narrow else None, narrowed)
        with _running(self._call, call):
            states = self._packed(self._part(start), rows, inputs_embeds=hidden[None])
        scored = states if narrow else states[rows.scored]
        tokens = token_log_probs(scored, self._head, rows.place, rows.target)
        return tokens.new_zeros(rows.segments).index_add(0, rows.segment, tokens)

    def _packed(self, part: Any, rows: Rows, **inputs: Tensor) -> Tensor:
        """Run some layers over packed rows as one sequence, and return their output [N, d].

        Attention gets the layout, so it knows where rows begin and end.
        """
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
    def continue_states(
        self, ids: Tensor, positions: Tensor, visible: Tensor, cache: Any, draw: Draw | None, stop: int
    ) -> Tensor:
        """Return the activations [B, L, d] below layer `stop` of tokens behind those in `cache`.

        The tokens are `ids` [B, L], and their keys and values are added to `cache`. `visible`
        [B, L, keys] says which keys, cached or new, each new token sees. The draw is that of
        `sites_of(layout.first_layer, stop)`.
        """
        with _running(self._call, Call(draw)):
            out = self._part(0, stop)(
                input_ids=ids,
                attention_mask=additive_mask(visible, self.dtype),
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
            )
        hidden: Tensor = out.last_hidden_state
        return hidden

    @torch.no_grad()
    def next_logits(
        self, hidden: Tensor, positions: Tensor, visible: Tensor, cache: Any, draw: Draw | None, start: int
    ) -> Tensor:
        """Return the logits [R, V], in fp32, behind the last token of `hidden` [R, L, d].

        `hidden` are activations below layer `start`. The new keys and values of the layers from
        there on are added to `cache`.
        """
        with _running(self._call, Call(draw, self.span_of(start).start)):
            out = self._part(start)(
                inputs_embeds=hidden,
                attention_mask=additive_mask(visible, self.dtype),
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
            )
        logits: Tensor = self._head(out.last_hidden_state[:, -1]).float()
        return logits

    def _part(self, start: int, stop: int | None = None) -> Any:
        """Return a decoder of the layers from `start` to before `stop`, made once.

        Only the one that ends with the last layer has the final norm.
        """
        stop = self.depth if stop is None else stop
        if (start, stop) not in self._parts:
            norm_to_skip = None if stop == self.depth else self._norm
            self._parts[start, stop] = _part(self._decoder, self._layers[start:stop], norm_to_skip)
        return self._parts[start, stop]


class _running:  # noqa: N801 - reads as a verb at its one use
    """Context manager that sets a backbone's call for one pass, and empties it afterwards.

    Raises `RuntimeError` where another pass is running.
    """

    def __init__(self, call: Call, new: Call) -> None:
        self._call, self._new = call, new

    def __enter__(self) -> None:
        if self._call.draw is not None or self._call.tokens is not None:
            raise RuntimeError("a backbone runs one pass at a time")
        self._set(self._new)

    def __exit__(self, *_: object) -> None:
        self._set(Call())

    def _set(self, new: Call) -> None:
        vars(self._call).update(vars(new))


def _unwrap(layers: nn.ModuleList) -> None:
    """Undo what an earlier `Backbone` did. Quantised layers stay `FrozenLinear`."""
    _widen(layers[-1])
    for path, module in list(layers.named_modules()):
        if isinstance(module, AdaptedLinear):
            base = module.frozen.base
            _replace(layers, path, module.frozen if is_quantised(base) else base)


def _freeze_quantised(layers: nn.ModuleList) -> None:
    """Replace every quantised layer by a `FrozenLinear`, whether it is adapted or not."""
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
    """Return a shallow copy of the decoder with some of its layers; it shares every weight.

    The norm of the name `norm_to_skip` is left out.
    """
    part = copy.copy(decoder)
    part._modules = dict(decoder._modules)
    part._modules["layers"] = nn.ModuleList(layers)
    if norm_to_skip is not None:
        part._modules[norm_to_skip] = nn.Identity()
    return part
