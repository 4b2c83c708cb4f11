"""Frozen decoder in two parts: the trunk below the first adapted layer, and the top from there on.

The trunk does not depend on the adapter. So its activations are computed once for all gradient
steps and all samples of a posterior.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import MethodType
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from abmll.decoder.architectures import is_like_llamas
from abmll.decoder.attention import BlockLayout, Layout, additive_mask, use_packed_attention
from abmll.decoder.layout import AdapterLayout, Site
from abmll.decoder.norms import use_lean_norms
from abmll.decoder.quantised import FrozenLinear, is_quantised
from abmll.decoder.readout import Capture, Readout, is_readout
from abmll.decoder.rows import Rows
from abmll.decoder.sites import decoder_layers, walk_sites
from abmll.decoder.swiglu import use_lean_swiglu
from abmll.decoder.vocabulary import changed_log_probs, normaliser, token_log_probs
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

    Between passes it is empty. Behind the attention of the last layer, only `tokens` are computed,
    with the draw `narrowed`; None means all tokens.
    """

    draw: Draw | None = None
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
        y = draw(self.site, x.flatten(0, -2), self.frozen)
        return y.view(*x.shape[:-1], self.frozen.out_features)


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

    A backbone owns its model: it wraps the layers in place. The draw is an argument of each call,
    so no adapter is active between calls. Calls must not overlap: one thread owns a backbone.
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
        self.narrows = narrow_last_layer(layers[-1], self._call)
        self.depth = len(layers)
        # transformers 5.24 gives the argument another name; the old one goes in 5.40.
        known = inspect.signature(type(decoder).forward).parameters
        self._cache_argument = "cache" if "cache" in known else "past_key_values"
        self._embedding = _part(decoder, [], norm)
        self._layers = [_part(decoder, [layer], norm) for layer in layers]
        self._trunk = _part(decoder, list(layers)[: layout.first_layer], norm)
        self._top = _part(decoder, list(layers)[layout.first_layer :], None)
        self._top_without_norm = _part(decoder, list(layers)[layout.first_layer :], norm)
        self.final_norm = getattr(decoder, norm)
        self.head = model.get_output_embeddings()
        # See `decoder/option_references.py`; the model sets what makes the mean of its theta a
        # draw.
        self.offsets: dict[EncodedPrompt, Tensor] = {}
        self.global_draw: Callable[[Rows], Draw] | None = None

    @property
    def device(self) -> torch.device:
        """Return the device of the model."""
        device: torch.device = next(self.model.parameters()).device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """Return the dtype of activations."""
        dtype: torch.dtype = self.head.weight.dtype
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
        for layer in self._trunk.layers:
            for name, part in layer.named_children():
                if not name.endswith(("attn", "attention")):
                    part.compile(dynamic=True, backend=backend)

    @property
    def has_readout(self) -> bool:
        """Return whether samples may differ in the readout alone (`decoder/readout.py`)."""
        return self.narrows and is_readout(self.sites[-1], self.depth)

    @torch.no_grad()
    def trunk(self, rows: Rows) -> Tensor:
        """Return the activations [N, d] of packed rows below the first adapted layer."""
        hidden: Tensor = self._packed(self._trunk, rows, input_ids=rows.input_ids[None])
        return hidden

    def log_probs(self, hidden: Tensor, rows: Rows, draw: Draw | None) -> Tensor:
        """Return the log-probabilities [M] of the rows' segments, in nats and in fp32.

        `hidden` [N, d] are the activations of the trunk.
        """
        scored = self._scored_states(hidden, rows, draw, normed=True)
        tokens = token_log_probs(scored, self.head, rows.place, rows.target)
        return tokens.new_zeros(rows.segments).index_add(0, rows.segment, tokens)

    @torch.no_grad()
    def readout(self, hidden: Tensor, rows: Rows, draw: Draw) -> Readout:
        """Return what samples share, where they differ from the mean in the readout alone.

        `draw` is the mean, and `hidden` [N, d] are the activations of the trunk. Only a backbone
        with `has_readout` can do it.
        """
        capture = Capture(draw, len(self.sites) - 1, [])
        states = self._scored_states(hidden, rows, capture, normed=False)
        return Readout(states, capture.all, normaliser(self.final_norm(states), self.head))

    @torch.no_grad()
    def readout_log_probs(self, readout: Readout, noise: Callable[[Tensor], Tensor], rows: Rows) -> Tensor:
        """Return the log-probabilities [S, M] of the rows' segments, in nats and in fp32.

        `noise(inputs)` [S, p, d] is what each sample adds to the readout's output for `inputs`
        [p, f].
        """
        normed = self.final_norm(readout.states)

        def moves(part: slice) -> Tensor:
            states = readout.states[part].float()
            moved: Tensor = self.final_norm(states + noise(readout.inputs[part])) - self.final_norm(states)
            return moved

        tokens = changed_log_probs(readout.normaliser, normed, moves, self.head, rows.place, rows.target)
        return tokens.new_zeros(len(tokens), rows.segments).index_add(1, rows.segment, tokens)

    def _scored_states(self, hidden: Tensor, rows: Rows, draw: Draw | None, *, normed: bool) -> Tensor:
        """Return the last states [P, d] of the tokens that predict a token to score."""
        narrowed = draw.narrowed(rows.scored_by_row) if self.narrows and draw is not None else None
        narrow = self.narrows and (draw is None or narrowed is not None)
        with _running(self._call, Call(draw, rows.scored if narrow else None, narrowed)):
            states = self._packed(
                self._top if normed else self._top_without_norm, rows, inputs_embeds=hidden[None]
            )
        return states if narrow else states[rows.scored]

    def _packed(self, part: Any, rows: Rows, **inputs: Tensor) -> Tensor:
        """Run some layers over packed rows as one sequence, and return their output [N, d].

        Attention gets the layout, so it knows where rows begin and end.
        """
        return self._run(part, rows.positions, Layout.of(rows, self.dtype), **inputs)

    def _run(
        self, part: Any, positions: Tensor, layout: Layout | BlockLayout | None, **inputs: Tensor
    ) -> Tensor:
        unused_mask = torch.zeros(1, 1, 1, 1, dtype=self.dtype, device=self.device)
        out = part(
            attention_mask=unused_mask,
            position_ids=positions[None],
            use_cache=False,
            layout=layout,
            **inputs,
        )
        hidden: Tensor = out.last_hidden_state[0]
        return hidden

    @torch.no_grad()
    def embedded(self, rows: Rows) -> Tensor:
        """Return what the first layer reads, [N, d]."""
        return self._run(self._embedding, rows.positions, None, input_ids=rows.input_ids[None])

    def layer(
        self, index: int, hidden: Tensor, positions: Tensor, layout: Layout | BlockLayout, call: Call
    ) -> Tensor:
        """Return the output of layer number `index` for tokens `hidden` [n, d].

        It has n tokens, or those of `call.tokens`. Nothing of `call` stays set.
        """
        with _running(self._call, call):
            return self._run(self._layers[index], positions, layout, inputs_embeds=hidden[None])

    @torch.no_grad()
    def continue_trunk(self, ids: Tensor, positions: Tensor, visible: Tensor, cache: Any) -> Tensor:
        """Return the trunk activations [B, L, d] of tokens `ids` [B, L] behind those in `cache`.

        The keys and values of the new tokens are added to `cache`. `visible` [B, L, keys] says
        which keys, cached or new, each new token sees.
        """
        return self._continued(self._trunk, positions, visible, cache, input_ids=ids)

    @torch.no_grad()
    def next_logits(
        self, hidden: Tensor, positions: Tensor, visible: Tensor, cache: Any, draw: Draw | None
    ) -> Tensor:
        """Return the logits [R, V], in fp32, behind the last token of trunk activations [R, L, d].

        The new keys and values of the adapted layers are added to `cache`.
        """
        with _running(self._call, Call(draw)):
            states = self._continued(self._top, positions, visible, cache, inputs_embeds=hidden)
        logits: Tensor = self.head(states[:, -1]).float()
        return logits

    @torch.no_grad()
    def continue_readout(
        self, hidden: Tensor, positions: Tensor, visible: Tensor, cache: Any, draw: Draw
    ) -> tuple[Tensor, Tensor]:
        """Return the states [B, L, d] before the final norm, and the readout's inputs [B, L, f].

        They are under the mean `draw`. `hidden` and `cache` are as in `next_logits`.
        """
        capture = Capture(draw, len(self.sites) - 1, [])
        with _running(self._call, Call(capture)):
            states = self._continued(self._top_without_norm, positions, visible, cache, inputs_embeds=hidden)
        return states, capture.all.view(*states.shape[:2], -1)

    @torch.no_grad()
    def readout_logits(self, states: Tensor, noise: Tensor) -> Tensor:
        """Return the logits [R, V], in fp32, with `noise` [R, d] added to `states` [R, d]."""
        normed = self.final_norm(states.float() + noise).to(self.dtype)
        logits: Tensor = self.head(normed).float()
        return logits

    def _continued(
        self, part: Any, positions: Tensor, visible: Tensor, cache: Any, **inputs: Tensor
    ) -> Tensor:
        out = part(
            attention_mask=additive_mask(visible, self.dtype),
            position_ids=positions,
            use_cache=True,
            **{self._cache_argument: cache},
            **inputs,
        )
        hidden: Tensor = out.last_hidden_state
        return hidden


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
