"""What might pay on a GPU and is not decided: grouped rank-r products, and CUDA graphs.

Nothing here is in the product but `Padded` and `ByRow`; a run on a card says what should be.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from unittest.mock import patch

import torch
from torch import Tensor

from abmll.adaptation.loss import Batch, negative_log_likelihood
from abmll.adaptation.run import Adaptation
from abmll.decoder.backbone import Draw
from abmll.decoder.layout import unflatten
from abmll.decoder.low_rank import Segments, add_loras
from abmll.decoder.quantised import FrozenLinear
from abmll.decoder.ragged import ByRow, Padded, Ragged
from abmll.decoder.rows import collate
from abmll.posterior.noise.draws import full_samples, means, readout_noise
from abmll.posterior.noise.weight import SignedDraw, WeightNoise
from abmll.prediction.settings import PredictSettings
from abmll.seeds import derive_seed, sample_seeds
from benchmarks import common
from benchmarks.gpu.report import Section
from benchmarks.gpu.subjects import READOUT_SCALE, Subject
from benchmarks.readout import ALLOWED_NATS

# Tenants of the comparison of rank-r products.
GROUPED_TENANTS = 16
# Samples of a pass that is captured.
CAPTURED_SAMPLES = 8
WAYS: dict[str, Callable[[Sequence[int], torch.device, torch.dtype], Ragged]] = {
    "padded, one batched product": lambda lengths, device, dtype: Padded(lengths, device),
    "row by row": lambda lengths, device, dtype: ByRow(lengths),
}


def rank_r(section: Section, subject: Subject) -> None:
    """Compare rank-r products that are grouped with those row by row, and block by block.

    Adaptation takes `Padded` on a GPU. Prediction takes a loop over blocks of a sample's tokens
    where their lengths differ; grouping them as `Padded` does is not in the product.
    """
    section.note("Of one tenant medians of the repeats; of more, one run after one to warm up.")
    section.head = ["tenants", "", "", "s"]
    for count in sorted({1, min(GROUPED_TENANTS, max(subject.sizes.tenants))}):
        adapt_both_ways(section, subject, count)
        predict_both_ways(section, subject, count)


def adapt_both_ways(section: Section, subject: Subject, count: int) -> None:
    """Time an adaptation of `count` tenants with each of `WAYS`."""
    supports = [subject.support(tenant) for tenant in range(count)]
    found: dict[str, list[Adaptation]] = {}

    def adapt(name: str) -> None:
        with patch("abmll.posterior.noise.weight.ragged", WAYS[name]):
            found[name] = subject.model.adapt_many(supports, seed=subject.seed)

    repeats = None if count == 1 else 1
    seconds = subject.seconds({name: partial(adapt, name) for name in WAYS}, repeats)
    one, other = ([loss for of in found[name] for loss in of.losses] for name in WAYS)
    gap = max(abs(a - b) for a, b in zip(one, other, strict=True))
    allowed = ALLOWED_NATS[subject.model.backbone.dtype]
    section.compare(f"{count} tenants, losses of both ways in nats", gap, allowed)
    for name in WAYS:
        section.row(count, "adapt", name, seconds[name])


def predict_both_ways(section: Section, subject: Subject, count: int) -> None:
    """Time a prediction for `count` tenants block by block and grouped."""
    model, found = subject.model, dict[str, list[list[float]]]()
    start = model.adapt(subject.support(), seed=subject.seed).posterior
    requests = [(start, subject.queries)] * count

    def predict(name: str, add: Callable[..., Tensor]) -> None:
        with patch("abmll.posterior.noise.point.add_loras", add):
            many = model.predict_many(requests, samples=subject.sizes.samples, seed=subject.seed)
        found[name] = [p for of_one in many for p in common.probabilities(of_one)]

    ways = {"block by block": add_loras, "padded, one batched product": grouped_loras}
    repeats = None if count == 1 else 1
    seconds = subject.seconds({name: partial(predict, name, add) for name, add in ways.items()}, repeats)
    difference = common.largest_difference(*found.values())
    allowed = common.tolerance(model.backbone.dtype)
    section.compare(f"{count} tenants, probabilities of both ways", difference, allowed)
    for name in ways:
        section.row(count, "predict, every site", name, seconds[name])


def grouped_loras(x: Tensor, layer: FrozenLinear, a: Tensor, b: Tensor, segments: Segments) -> Tensor:
    """Compute what `add_loras` does, with one batched product of all blocks."""
    rows, index = _grouped(segments, x.device)
    y: Tensor = layer(x)
    rows.add_back(y, rows.project(x, a[index]), b.mT[index])
    return y


@lru_cache(maxsize=8)
def _grouped(segments: Segments, device: torch.device) -> tuple[Padded, Tensor]:
    return Padded(segments.lengths, device), torch.tensor(segments.index, device=device)


@dataclass(frozen=True)
class Fixed:
    """A draw whose narrowed form was made before: nothing is copied to the device in a pass."""

    draw: Draw
    of_scored: Draw

    def __call__(self, site: int, x: Tensor, layer: FrozenLinear) -> Tensor:
        """See `Draw`."""
        return self.draw(site, x, layer)

    def narrowed(self, row_tokens: Sequence[int]) -> Draw:
        """See `Draw`."""
        return self.of_scored


def graphs(section: Section, subject: Subject) -> None:
    """Time passes of fixed shape as they are, and as replays of a CUDA graph.

    A step is its forward and backward pass, without drawing and optimiser.
    """
    model, seed = subject.model, subject.seed
    section.note("Shapes and random numbers are fixed: this is the most that graphs could save.")
    section.head = ["pass", "eager s", "graph s", "eager over graph"]
    fixed = {
        "step": fixed_step,
        "samples of every site": fixed_samples,
        "samples of the readout": fixed_readout,
    }
    run = model.begin_adapt(subject.support(), seed=seed)
    model.step([run])
    nll = fixed_step(subject)()
    allowed = ALLOWED_NATS[model.backbone.dtype]
    gap = abs(float(nll.mean()) - run.losses[0])
    section.compare("The fixed step's loss against ours, in nats", gap, allowed)
    for name, make in fixed.items():
        once = make(subject)
        eager = subject.seconds({"": once})[""]
        if not subject.on_card:
            section.row(name, eager, "needs a card", "")
            continue
        try:
            replay, captured = capture(once)
        except RuntimeError as error:
            section.row(name, eager, f"cannot be captured: {str(error).splitlines()[0]}", "")
            continue
        seconds = subject.seconds({"": replay})[""]
        gap = float((captured - once()).abs().max())
        section.compare(f"{name}, nats, replay against eager", gap, allowed)
        section.row(name, eager, seconds, eager / seconds)


def capture(once: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
    """Return the replay of `once` as a CUDA graph, and the tensor that it writes.

    Raises `RuntimeError` where `once` waits for the device, or copies to it, on its way.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            once()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = once()
    return graph.replay, out


def fixed_step(subject: Subject) -> Callable[[], Tensor]:
    """Return the forward and backward pass of an adaptation's first step, giving NLL [R] in nats."""
    model, seed = subject.model, subject.seed
    backbone, prior = model.backbone, model.prior
    run = model.begin_adapt(subject.support(), seed=seed)
    config = replace(prior.config, noise=prior.config.noise.in_training())
    batch = Batch.of([(0, run.prepared, i) for i in run.next_batch], backbone.device)
    values, rank = run.values[None].clone().requires_grad_(), config.layout.rank
    first = WeightNoise().training_draw(
        config,
        backbone.sites,
        unflatten(values, backbone.sites, rank),
        seeds=[derive_seed(seed, 1, i) for i in run.next_batch],
        task_of_row=batch.task_of_row,
        row_tokens=batch.rows.lengths,
        dtype=batch.hidden.dtype,
    )
    narrowed = first.narrowed(batch.rows.scored_by_row)

    def once() -> Tensor:
        phi = unflatten(values, backbone.sites, rank)
        draws: list[SignedDraw] = [replace(draw, tensors=phi) for draw in (first, narrowed)]
        scores = batch.reference.score(backbone.log_probs(batch.hidden, batch.rows, Fixed(*draws)))
        nll = negative_log_likelihood(scores, batch.rows, batch.labels)
        torch.autograd.grad(nll.sum(), values)
        return nll.detach()

    return once


def fixed_samples(subject: Subject) -> Callable[[], Tensor]:
    """Return a pass of some samples of every site, giving log-probabilities in nats."""
    model, backbone, count = subject.model, subject.model.backbone, CAPTURED_SAMPLES
    prompts = model.encode_queries(subject.queries, PredictSettings())
    trunk = backbone.trunk(collate(prompts, backbone.device))
    rows, hidden = collate(prompts * count, backbone.device), trunk.repeat(count, 1)
    samples = full_samples(
        model.prior.config,
        backbone.sites,
        model.prior.values.to(backbone.device)[None],
        seeds=sample_seeds(subject.seed, 0, count, paired=True),
        task_of_sample=[0] * count,
        dtype=backbone.dtype,
    )
    draw = samples.for_rows([s for s in range(count) for _ in prompts], rows.lengths)
    narrowed = draw.narrowed(rows.scored_by_row)
    fixed = draw if narrowed is None else Fixed(draw, narrowed)
    return torch.no_grad()(lambda: backbone.log_probs(hidden, rows, fixed))


def fixed_readout(subject: Subject) -> Callable[[], Tensor]:
    """Return a pass of some samples of the readout, giving log-probabilities in nats."""
    model, backbone = subject.model, subject.model.backbone
    config = replace(model.prior.config, noise=replace(model.prior.config.noise, readout_scale=READOUT_SCALE))
    rows = collate(model.encode_queries(subject.queries, PredictSettings()), backbone.device)
    values = model.prior.values.to(backbone.device)
    mean = means(config, backbone.sites, values[None]).for_rows([0] * len(rows.lengths), rows.lengths)
    readout = backbone.readout(backbone.trunk(rows), rows, mean)
    seeds = sample_seeds(subject.seed, 0, CAPTURED_SAMPLES, paired=True)
    noise = readout_noise(config, backbone.sites, values, seeds=seeds, dtype=backbone.dtype)
    return lambda: backbone.readout_log_probs(readout, noise.of, rows)
