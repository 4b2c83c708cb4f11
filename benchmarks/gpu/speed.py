"""Time of one tenant against PEFT and the floor, of many tenants together, and memory."""

from __future__ import annotations

from functools import partial

import torch

from abmll.adaptation.run import TOKENS_PER_BACKWARD
from abmll.memory_plan import MemoryCosts, measure_costs
from abmll.posterior.posteriors import TaskPosterior
from abmll.prediction.option_runs import TOKENS_PER_CHUNK
from abmll.text.tasks import Example
from benchmarks import common
from benchmarks.floor import Shapes, bare
from benchmarks.gpu.report import Section
from benchmarks.gpu.subjects import READOUT_SCALE, Subject
from benchmarks.reference_lora import PeftLora
from benchmarks.scale_8b import most_step_tokens

DROPOUT, ROWS_PER_PASS = 0.05, 32
# Of a probability, with random weights. They amplify the rounding of bf16: 16 layers of width 512
# on the CPU differed by 0.023.
ALLOWED_RANDOM = 0.1


def one_tenant(section: Section, subject: Subject) -> None:
    """Compare one adaptation and one prediction with PEFT and with the floor."""
    model, seed, sizes = subject.model, subject.seed, subject.sizes
    lora = PeftLora(
        subject.dense(), model.prior, dropout=DROPOUT, needed_only=True, rows_per_pass=ROWS_PER_PASS
    )
    encoded = model.encode_support(subject.support())
    prompts, labels = [example.prompt for example in encoded], [example.label for example in encoded]
    asked = [model.encoder.encode(query) for query in subject.queries]
    lora.start(seed, copy_means=True)
    mean = model.predict(common.untempered(model.prior), subject.queries, samples=0)
    difference = common.largest_difference(
        common.probabilities(mean), lora.predict(asked, samples=0, seed=seed)
    )
    allowed = ALLOWED_RANDOM if subject.random else common.tolerance(model.backbone.dtype)
    section.compare("Theta's means without noise, ours against PEFT", difference, allowed)
    section.note(
        f"{sizes.examples} examples, {model.defaults.steps} steps, {sizes.inputs} inputs of {len(asked[0].options)} options, "
        f"S = {sizes.samples}. PEFT takes the logits that are needed, and its samples are passes with dropout. "
        "The floor is dense matrix products alone; making NF4 or int8 dense is only in ours and in PEFT."
    )
    settings, shapes = model.defaults, Shapes.of(model)

    def fit() -> None:
        lora.start(seed, copy_means=False)
        lora.fit(
            prompts,
            labels,
            steps=settings.steps,
            batch_size=settings.batch_size,
            learning_rate=settings.learning_rate,
            seed=seed,
        )

    phi = model.adapt(subject.support(), seed=seed).posterior
    predict = partial(model.predict, queries=subject.queries, seed=seed)
    readout = phi.with_readout_scale(READOUT_SCALE)
    product = partial(bare, dtype=model.backbone.dtype, device=subject.device)
    section.head = ["", "", "s", "over ours"]
    adapting = subject.seconds(
        {
            "ours": lambda: model.adapt(subject.support(), seed=seed),
            "PEFT": fit,
            "floor": product(shapes.adaptation(prompts)),
        }
    )
    for arm, seconds in adapting.items():
        section.row("adapt", arm, seconds, seconds / adapting["ours"])
    ours = f"ours, S = {sizes.samples} of every site"
    predicting = subject.seconds(
        {
            ours: lambda: predict(phi, samples=sizes.samples),
            f"ours, S = {sizes.samples} of the readout": lambda: predict(readout, samples=sizes.samples),
            "ours, mean": lambda: predict(phi, samples=0),
            "PEFT": lambda: lora.predict(asked, samples=sizes.samples, seed=seed),
            "floor, every site": product(shapes.prediction(asked, sizes.samples)),
        }
    )
    for arm, seconds in predicting.items():
        section.row("predict", arm, seconds, seconds / predicting[ours])


def tenants(section: Section, subject: Subject) -> None:
    """Measure adapting and predicting of many tenants together."""
    model, sizes = subject.model, subject.sizes
    costs = measure_costs(model.backbone, model.prior)
    section.note(
        f"Each tenant has {sizes.examples} examples and {sizes.inputs} inputs, S = {sizes.samples}. "
        "One run each after one to warm up."
    )
    section.head = ["tenants", "", "s", "tenants a second", "inputs a second"]
    for count in sizes.tenants:
        if subject.on_card and (planned := planned_bytes(subject, costs, count)) > free_bytes():
            section.note(
                f"{count} tenants: not run, the plan of {planned / 2**30:.1f} GiB is more than is free."
            )
            continue
        supports = [subject.support(tenant) for tenant in range(count)]
        phis: list[TaskPosterior] = []

        def adapt(supports: list[list[Example]] = supports, phis: list[TaskPosterior] = phis) -> None:
            phis[:] = [found.posterior for found in model.adapt_many(supports, seed=subject.seed)]

        seconds = subject.seconds({"": adapt}, repeats=1)[""]
        section.row(count, "adapt", seconds, count / seconds, "")
        for kind, of in {
            "predict, readout": [phi.with_readout_scale(READOUT_SCALE) for phi in phis],
            "predict, every site": phis,
        }.items():
            requests = [(phi, subject.queries) for phi in of]
            run = partial(model.predict_many, requests, samples=sizes.samples, seed=subject.seed)
            seconds = subject.seconds({"": run}, repeats=1)[""]
            section.row(count, kind, seconds, count / seconds, count * sizes.inputs / seconds)


def memory(section: Section, subject: Subject) -> None:
    """Compare the peak of PyTorch's allocator in adapting and predicting with the plan."""
    model, sizes = subject.model, subject.sizes
    costs = measure_costs(model.backbone, model.prior)
    section.note(
        "Bytes that tensors take, without the CUDA context and what the allocator keeps free. "
        "All tenants adapt together, and then predict together with samples of every site."
    )
    section.head = [
        "tenants",
        "base GiB by plan",
        "held before",
        "peak GiB by plan",
        "measured",
        "over the plan, %",
    ]
    gib = 2**30
    for count in sizes.tenants:
        planned = planned_bytes(subject, costs, count)
        if not subject.on_card:
            section.row(count, costs.base_bytes / gib, "needs a card", planned / gib, "needs a card", "")
            continue
        if planned > free_bytes():
            section.note(
                f"{count} tenants: not run, the plan of {planned / gib:.1f} GiB is more than is free."
            )
            continue
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        held = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        adapted = model.adapt_many([subject.support(t) for t in range(count)], seed=subject.seed)
        requests = [(found.posterior, subject.queries) for found in adapted]
        model.predict_many(requests, samples=sizes.samples, seed=subject.seed)
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated()
        section.row(
            count, costs.base_bytes / gib, held / gib, planned / gib, peak / gib, 100 * (peak / planned - 1)
        )


def planned_bytes(subject: Subject, costs: MemoryCosts, count: int) -> int:
    """Return the planned peak of `count` tenants that adapt together and then predict together."""
    model, sizes = subject.model, subject.sizes
    step = sum(most_step_tokens(model, subject.support(t), subject.seed) for t in range(count))
    run = model.begin_predict(
        None, subject.queries, max_tokens=TOKENS_PER_CHUNK // count, samples=sizes.samples
    )
    return costs.peak_bytes(
        count,
        min(step, TOKENS_PER_BACKWARD),
        count * run.next_tokens,
        samples=count * run.next_chunk().copies,
        adaptations=count,
    )


def free_bytes() -> int:
    """Return the bytes that tensors may take beside nothing else: the card's free and our own."""
    free, _ = torch.cuda.mem_get_info()
    return free + torch.cuda.memory_reserved()
