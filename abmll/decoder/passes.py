"""Passes that rest: other passes may run on the same backbone between two pieces of one.

A piece is one layer over the tokens of a pass, or over a block of them where the pass is one long
row, or the output layer over some of the tokens to score. A pass that rests is a generator that
yields between pieces, whenever the next one would be too much for its `Pace`. Between pieces,
nothing is set on the backbone. The results are those of the whole pass.

A block sees the earlier tokens of its row through their keys and values, which a layer keeps until
its last block is done. So no matrix of attention is larger than a block times the keys it sees. The
gradient goes backwards through the layers, and through the blocks of each. It computes each piece
again from the layer's inputs and keys, which are all that is kept of the forward pass (Chen et al.
2016, "Training Deep Nets with Sublinear Memory Cost").
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias, TypeVar

import torch
from torch import Tensor

from abmll.decoder.attention import BlockLayout, BlockView, Layout
from abmll.decoder.backbone import Backbone, Call, Draw
from abmll.decoder.readout import Capture, Readout
from abmll.decoder.rows import Rows
from abmll.decoder.vocabulary import KEPT_WORDS, normaliser, token_log_probs

T = TypeVar("T")
Resting: TypeAlias = Generator[None, None, T]
"""Work that yields where it rests, and returns its result."""

# Tokens of a block. Each block makes the quantised weights of its layer dense again.
BLOCK_TOKENS = 512
# Tokens to score whose words are computed in one piece.
SCORED_AT_ONCE = 128
# A product of attention takes as long as this many of a linear layer.
ATTENTION_COST = 2.0
# Backward takes as long as this many times forward.
BACKWARD_COST = 2.0


def finish(work: Resting[T]) -> T:
    """Do the work without a rest, and return its result."""
    while True:
        try:
            next(work)
        except StopIteration as stop:
            result: T = stop.value
            return result


@dataclass
class Pace:
    """How much is done between two rests: `most`, in tokens times layers.

    One piece may be more. `done` counts from the last rest.
    """

    most: float
    done: float = 0.0

    def due(self, work: float) -> bool:
        """Return whether to rest before the next piece, of so much `work`, and count it."""
        due = self.done > 0 and self.done + work > self.most
        self.done = work if due else self.done + work
        return due


@dataclass(frozen=True)
class Works:
    """How much work a token is, in passes of one token through one layer.

    `key` is that of a key that it sees in one layer, `scored` that of the words of a token to
    score, and `moved` that of such a token under a sample of the readout.
    """

    key: float
    scored: float
    moved: float

    @classmethod
    def of(cls, backbone: Backbone) -> Works:
        """Return the numbers of products of each, relative to those of a layer."""
        config = backbone.model.config
        layer = 3 * config.hidden_size * (config.hidden_size + config.intermediate_size)
        return cls(
            ATTENTION_COST * 2 * config.hidden_size / layer,
            config.vocab_size * config.hidden_size / layer,
            min(KEPT_WORDS, config.vocab_size) * config.hidden_size / layer,
        )

    def layer(self, rows: Rows) -> float:
        """Return the work of one layer, where each token sees half of its row."""
        return sum(n + self.key * n * n / 2 for n in rows.lengths)

    def of_pass(self, rows: Rows, layers: int) -> float:
        """Return the work of a pass through `layers`, and of the words of its tokens to score."""
        return layers * self.layer(rows) + self.scored * len(rows.scored)


@dataclass(frozen=True)
class _Block:
    """Tokens that a layer computes in one piece: all of a pass, or some of its only row.

    `scored` are its tokens to score, counted in the block. `view` is None for all tokens.
    """

    tokens: slice
    draw: Draw | None
    scored: Tensor
    narrowed: Draw | None
    view: BlockView | None
    work: float

    def call(self, *, narrow: bool) -> Call:
        return Call(self.draw, self.scored if narrow else None, self.narrowed if narrow else None)


class _Pass:
    """One pass through some layers: its blocks, and how a layer computes one."""

    def __init__(self, backbone: Backbone, rows: Rows, draw: Draw | None) -> None:
        self.backbone, self.rows, works = backbone, rows, Works.of(backbone)
        narrowed = draw.narrowed(rows.scored_by_row) if backbone.narrows and draw is not None else None
        self.narrows = backbone.narrows and (draw is None or narrowed is not None)
        total = len(rows.input_ids)
        long = len(rows.lengths) == 1 and total > BLOCK_TOKENS
        if long and (draw is None or draw.narrowed([total]) is not None):
            spans = [slice(a, min(a + BLOCK_TOKENS, total)) for a in range(0, total, BLOCK_TOKENS)]
            self.blocks = [self._block(span, draw, works) for span in spans]
        else:
            self._whole = Layout.of(rows, backbone.dtype)
            work = works.layer(rows)
            self.blocks = [_Block(slice(0, total), draw, rows.scored, narrowed, None, work)]
        self.scored = [len(block.scored) for block in self.blocks]

    def _block(self, span: slice, draw: Draw | None, works: Works) -> _Block:
        at = self.rows.scored
        scored = at[(at >= span.start) & (at < span.stop)] - span.start
        view = BlockView.of(self.rows, span)
        own = draw and draw.narrowed([view.count])
        narrowed = draw.narrowed([len(scored)]) if self.narrows and draw else None
        return _Block(span, own, scored, narrowed, view, view.count * (1 + works.key * view.keys))

    def ends(self, index: int) -> bool:
        """Return whether the layer computes only the tokens to score, behind its attention."""
        return self.narrows and index == self.backbone.depth - 1

    def layout(self, block: _Block, past: tuple[Tensor, Tensor] | None) -> Layout | BlockLayout:
        return self._whole if block.view is None else BlockLayout(block.view, past)

    def piece(self, index: int, block: _Block, x: Tensor, layout: Layout | BlockLayout) -> Tensor:
        positions = self.rows.positions[block.tokens]
        return self.backbone.layer(index, x, positions, layout, block.call(narrow=self.ends(index)))

    @torch.no_grad()
    def forward(
        self, layers: range, hidden: Tensor, pace: Pace, kept: list[_Kept] | None = None
    ) -> Resting[Tensor]:
        """Return the output of the layers; `kept` gets what `backward` needs of each."""
        for index in layers:
            past: tuple[Tensor, Tensor] | None = None
            found = []
            for block in self.blocks:
                if pace.due(block.work):
                    yield
                layout = self.layout(block, past)
                found.append(self.piece(index, block, hidden[block.tokens], layout))
                past = layout.all if isinstance(layout, BlockLayout) else None
            if kept is not None:
                kept.append(_Kept(hidden, past))
            hidden = torch.cat(found) if len(found) > 1 else found[0]
        return hidden

    def forward_kept(self, layers: range, hidden: Tensor, pace: Pace, kept: list[_Kept]) -> Resting[Tensor]:
        """Return the output of the layers; `kept` gets all that is computed of each.

        Only for a pass that is one block.
        """
        (block,) = self.blocks
        for index in layers:
            if pace.due(block.work):
                yield
            x = hidden.detach().requires_grad_()
            with torch.enable_grad():
                hidden = self.piece(index, block, x, self._whole)
            kept.append(_Kept(x, None, hidden))
        return hidden.detach()

    def backward(
        self, index: int, kept: _Kept, gradient: Tensor, leaves: Sequence[Tensor], pace: Pace
    ) -> Resting[Tensor]:
        """Return the gradient of a layer's input [N, d] from that of its output.

        That of the `leaves` is added to their `grad`.
        """
        sizes = self.scored if self.ends(index) else [b.tokens.stop - b.tokens.start for b in self.blocks]
        of_input = torch.empty_like(kept.hidden)
        of_keys = [torch.zeros_like(past, dtype=torch.float32) for past in kept.past or ()]
        by_block = list(zip(self.blocks, gradient.split(sizes), strict=True))
        for block, of_output in reversed(by_block):
            again = 1 if kept.output is None else 0
            if pace.due((again + BACKWARD_COST) * block.work):
                yield
            start, stop = block.tokens.start, block.tokens.stop
            x = (
                kept.hidden
                if kept.output is not None
                else kept.hidden[block.tokens].detach().requires_grad_()
            )
            past = [keys[:, :, :start].detach().requires_grad_() for keys in kept.past or () if start]
            layout = self.layout(block, (past[0], past[1]) if past else None)
            output = kept.output
            if output is None:
                with torch.enable_grad():
                    output = self.piece(index, block, x, layout)
            outputs, gradients = [output], [of_output]
            if isinstance(layout, BlockLayout) and layout.own:
                outputs += layout.own
                gradients += [keys[:, :, start:stop].to(x.dtype) for keys in of_keys]
            inputs = [x, *past, *leaves]
            of_x, *others = torch.autograd.grad(outputs, inputs, gradients, allow_unused=True)
            of_input[block.tokens] = of_x
            for keys, of_past in zip(of_keys, others[: len(past)], strict=False):
                keys[:, :, :start] += of_past
            add_gradients(leaves, others[len(past) :])
        return of_input


@dataclass(frozen=True)
class _Kept:
    """What is kept of a layer's forward pass: what it read [N, d], and keys and values of blocks.

    With its `output`, autograd keeps the rest, and the layer is not computed again.
    """

    hidden: Tensor
    past: tuple[Tensor, Tensor] | None
    output: Tensor | None = None


@dataclass
class _Scores:
    """The log-probabilities [K] of the tokens to score, some places after others.

    With `differentiable`, `pieces` keep what the gradient of the states needs.
    """

    backbone: Backbone
    rows: Rows
    differentiable: bool = False
    pieces: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list)

    def forward(self, states: Tensor, pace: Pace) -> Resting[Tensor]:
        """Return the log-probabilities [K] from states [P, d] before the final norm."""
        rows, work = self.rows, Works.of(self.backbone).scored
        found = torch.empty(len(rows.target), dtype=torch.float32, device=states.device)
        for start in range(0, len(states), SCORED_AT_ONCE):
            x = states[start : start + SCORED_AT_ONCE].detach().requires_grad_(self.differentiable)
            if pace.due(work * len(x)):
                yield
            here = ((rows.place >= start) & (rows.place < start + len(x))).nonzero()[:, 0]
            with torch.set_grad_enabled(self.differentiable):
                normed = self.backbone.final_norm(x)
                own = token_log_probs(normed, self.backbone.head, rows.place[here] - start, rows.target[here])
            found[here] = own.detach()
            if self.differentiable:
                self.pieces.append((x, own, here))
        return found

    def backward(self, gradient: Tensor, pace: Pace) -> Resting[Tensor]:
        """Return the gradient of the states [P, d] from that of the log-probabilities [K]."""
        work, found = Works.of(self.backbone).scored, list[Tensor]()
        for x, own, here in self.pieces:
            if pace.due(BACKWARD_COST * work * len(x)):
                yield
            found += torch.autograd.grad(own, x, gradient[here])
        return torch.cat(found)


def _by_segment(tokens: Tensor, rows: Rows) -> Tensor:
    return tokens.new_zeros(rows.segments).index_add(0, rows.segment, tokens)


def _states(work: _Pass, hidden: Tensor) -> Tensor:
    """Return the states [P, d] of the tokens to score, from the output of the last layer."""
    return hidden if work.narrows else hidden[work.rows.scored]


def trunk(backbone: Backbone, rows: Rows, pace: Pace | None) -> Resting[Tensor]:
    """Return what `Backbone.trunk` does. Without a pace, or where it fits, it is one piece."""
    layers = range(backbone.layout.first_layer)
    work = len(layers) * Works.of(backbone).layer(rows)
    if pace is None or work <= pace.most:
        if pace and pace.due(work):
            yield
        return backbone.trunk(rows)
    hidden = yield from _Pass(backbone, rows, None).forward(layers, backbone.embedded(rows), pace)
    return hidden


def log_probs(
    backbone: Backbone, hidden: Tensor, rows: Rows, draw: Draw | None, pace: Pace | None
) -> Resting[Tensor]:
    """Return what `Backbone.log_probs` does, without a gradient. As `trunk`."""
    layers = _top(backbone)
    work = Works.of(backbone).of_pass(rows, len(layers))
    if pace is None or work <= pace.most:
        if pace and pace.due(work):
            yield
        with torch.no_grad():
            return backbone.log_probs(hidden, rows, draw)
    run = _Pass(backbone, rows, draw)
    states = _states(run, (yield from run.forward(layers, hidden, pace)))
    tokens = yield from _Scores(backbone, rows).forward(states, pace)
    return _by_segment(tokens, rows)


def readout(
    backbone: Backbone, hidden: Tensor, rows: Rows, draw: Draw, pace: Pace | None
) -> Resting[Readout]:
    """Return what `Backbone.readout` does. As `trunk`."""
    layers, works = _top(backbone), Works.of(backbone)
    work = works.of_pass(rows, len(layers))
    if pace is None or work <= pace.most:
        if pace and pace.due(work):
            yield
        return backbone.readout(hidden, rows, draw)
    capture = Capture(draw, len(backbone.sites) - 1, [])
    run = _Pass(backbone, rows, capture)
    states = _states(run, (yield from run.forward(layers, hidden, pace)))
    found = []
    for own, inputs in zip(states.split(SCORED_AT_ONCE), capture.all.split(SCORED_AT_ONCE), strict=True):
        if pace.due(works.scored * len(own)):
            yield
        with torch.no_grad():
            found.append(Readout(own, inputs, normaliser(backbone.final_norm(own), backbone.head)))
    return Readout.joined(found)


def gradient(
    backbone: Backbone,
    hidden: Tensor,
    rows: Rows,
    draw: Draw,
    loss: Callable[[Tensor], Tensor],
    leaves: Sequence[Sequence[Tensor]],
    pace: Pace,
    *,
    keep: bool,
) -> Resting[Tensor]:
    """Return `loss` of the log-probabilities [M] that `Backbone.log_probs` gives.

    Its gradient is added to the `grad` of the `leaves`, by site, on which `draw` depends. The draw
    gives the same numbers whenever it is called. With `keep`, what the gradient needs is kept; a
    long row, and without `keep` any pass, is computed again instead.
    """
    layers = _top(backbone)
    run, kept = _Pass(backbone, rows, draw), list[_Kept]()
    forward = run.forward_kept if keep and len(run.blocks) == 1 else run.forward
    output = yield from forward(layers, hidden, pace, kept)
    scores = _Scores(backbone, rows, differentiable=True)
    tokens = yield from scores.forward(_states(run, output).detach(), pace)
    tokens.requires_grad_()
    with torch.enable_grad():
        found = loss(_by_segment(tokens, rows))
    (of_tokens,) = torch.autograd.grad(found.sum(), tokens)
    of_output = yield from scores.backward(of_tokens, pace)
    if not run.narrows:
        of_output = torch.zeros_like(output).index_add_(0, rows.scored, of_output)
    for index in reversed(layers):
        own = [
            leaf
            for site, of in zip(backbone.sites, leaves, strict=True)
            if site.layer == index
            for leaf in of
        ]
        of_output = yield from run.backward(index, kept.pop(), of_output, own, pace)
    return found.detach()


def _top(backbone: Backbone) -> range:
    return range(backbone.layout.first_layer, backbone.depth)


def add_gradients(leaves: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> None:
    """Add gradients to the `grad` of leaves; None is no gradient."""
    for leaf, of_leaf in zip(leaves, gradients, strict=True):
        if of_leaf is not None:
            leaf.grad = of_leaf if leaf.grad is None else leaf.grad.add_(of_leaf)
