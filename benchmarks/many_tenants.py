"""T tenants adapt and predict at the same time: one after another, together, and the way mLoRA trains.

    python -m benchmarks.many_tenants --data ../shared/data

Tenant t has task t of `--tasks` (again and again, each time with another support draw). `together` uses the model's
multi-task API.
The mLoRA-style baseline (`block_lora.py`) trains point estimates: contiguous blocks of rows in padded batches of at most
`--block-tokens` tokens, one row for each (example, option). Memory is measured in a child process that keeps adapters.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import torch

from abmll.posterior.posteriors import TaskPosterior
from abmll.prediction.run import Prediction
from benchmarks import common
from benchmarks.block_lora import BlockLora, TenantRows
from benchmarks.common import Cell, Served

TASKS = ["ag_news", "tweet_eval-hate", "yelp_polarity", "emo", "poem_sentiment", "financial_phrasebank"]
Results = tuple[list[TaskPosterior], list[list[Prediction]]]


def main() -> None:
    parser = common.arguments(__doc__, repeats=1, data=True)
    parser.add_argument("--tenants", nargs="+", type=int, default=[1, 4, 16, 64])
    parser.add_argument("--tasks", nargs="+", default=TASKS)
    parser.add_argument("--shots", type=int, default=8)
    parser.add_argument("--items", type=int, default=4)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--block-tokens", type=int, default=8192)
    parser.add_argument("--baseline-up-to", type=int, default=16, help="most tenants of the mLoRA-style arm")
    parser.add_argument("--name", default="many_tenants", help="of the results")
    parser.add_argument("--memory-adapters", type=int, default=8, help="that are kept in that measurement")
    parser.add_argument(
        "--memory-child", action="store_true", help="internal: only measure memory, in this process"
    )
    options = parser.parse_args()
    if options.quick:
        options.tenants, options.tasks, options.shots, options.items = (
            [1, 2],
            ["tweet_eval-hate", "poem_sentiment"],
            2,
            2,
        )
        options.samples, options.memory_adapters = 2, 2
    served = common.load_served(options.posterior, options.threads, total_scores=True)
    if options.memory_child:
        memory_child(served, options)
        return
    baseline = BlockLora(common.load_dense(served.manifest), served.model.prior)
    rows, detail, agreed = [], {}, set()
    for count in options.tenants:
        tenants = draw_tenants(count, options)
        found = measure(served, baseline, tenants, options)
        agreed |= set(found["agreement"])
        detail[str(count)] = found
        rows += report_rows(count, found)
        print(rows[-1], flush=True)
    memory = measure_memory(options)
    about = (
        f"{options.shots} support examples, {options.items} queries and S = {options.samples} a tenant, settings "
        f"`{served.manifest.adapt}`; tasks {', '.join(options.tasks)}."
    )
    head = [
        "tenants",
        "",
        "adapt s",
        "adaptations/s",
        "predict s",
        "queries/s",
        "end to end, x one after another",
    ]
    memory_rows = [[name, f"{value:,}"] for name, value in memory.items()]
    tables = [
        common.table(head, rows),
        f"Memory of an adapter, from keeping {options.memory_adapters}:",
        common.table(["", "bytes"], memory_rows),
    ]
    common.write_results(
        options.name, "Many tenants at a time", [about, *sorted(agreed)], tables,
        {"tenants": detail, "memory": memory}, options, served.dtype,
    )  # fmt: skip


def adapt_together(served: Served, tenants: Sequence[Cell]) -> list[TaskPosterior]:
    """All tenants' adaptations as one job."""
    adaptations = served.model.adapt_many([tenant.support for tenant in tenants])
    return [adaptation.posterior for adaptation in adaptations]


def predict_together(
    served: Served, tenants: Sequence[Cell], phi: Sequence[TaskPosterior], samples: int, seed: int
) -> list[list[Prediction]]:
    """All tenants' predictions as one job."""
    jobs = [(posterior, tenant.queries) for posterior, tenant in zip(phi, tenants, strict=True)]
    return served.model.predict_many(jobs, samples=samples, seed=seed)


def adapt_one_by_one(served: Served, tenants: Sequence[Cell]) -> list[TaskPosterior]:
    """What a server without multi-task batches does."""
    return [served.model.adapt(tenant.support).posterior for tenant in tenants]


def predict_one_by_one(
    served: Served, tenants: Sequence[Cell], phi: Sequence[TaskPosterior], samples: int, seed: int
) -> list[list[Prediction]]:
    """As `predict_together`."""
    return [
        served.model.predict(posterior, tenant.queries, samples=samples, seed=seed)
        for posterior, tenant in zip(phi, tenants, strict=True)
    ]


def draw_tenants(count: int, options: Any) -> list[Cell]:
    """Tenants with tasks in turn, every round with other support."""
    names = options.tasks
    return [
        common.read_cell(
            options.data, names[n % len(names)], options.shots, options.items, options.seed + n // len(names)
        )
        for n in range(count)
    ]


def measure(served: Served, baseline: BlockLora, tenants: Sequence[Cell], options: Any) -> dict[str, Any]:
    """Outputs compared, then seconds of each arm."""
    samples, seed, settings = options.samples, options.seed, served.model.defaults
    blocks = [block_rows(served, tenant) for tenant in tenants]
    groups = in_groups(blocks, options.block_tokens)
    agreement = [compare_block_scores(served, baseline, tenants[0], blocks[0])]
    state: dict[str, Any] = {}

    def adapt_blocks() -> None:
        for group in groups:
            baseline.fit(
                group,
                steps=settings.steps,
                batch_size=settings.batch_size,
                learning_rate=settings.learning_rate,
            )

    def keep(key: str, value: Any) -> Any:
        state[key] = value
        return value

    adapting = {
        "one by one": lambda: keep("phi", adapt_one_by_one(served, tenants)),
        "mLoRA-style": adapt_blocks,
        "together": lambda: keep("phi together", adapt_together(served, tenants)),
    }
    if len(tenants) > options.baseline_up_to:
        del adapting["mLoRA-style"]
    predicting = {
        "one by one": lambda: keep("p", predict_one_by_one(served, tenants, state["phi"], samples, seed)),
        "together": lambda: keep(
            "p together", predict_together(served, tenants, state["phi"], samples, seed)
        ),
    }
    served.model.adapt(tenants[0].support)  # warm up
    adapt_seconds = common.interleaved(adapting, options.repeats)
    agreement.append(compare_phi(state["phi"], state["phi together"], served.model.defaults.learning_rate))
    predict_seconds = common.interleaved(predicting, options.repeats)
    pairs = [
        [row for tenant in state[key] for row in common.probabilities(tenant)] for key in ("p", "p together")
    ]
    allowed = common.tolerance(served.dtype)
    agreement.append(common.check_close("Probabilities together", common.largest_difference(*pairs), allowed))
    queries = sum(len(tenant.queries) for tenant in tenants)
    return {
        "adapt_seconds": adapt_seconds,
        "predict_seconds": predict_seconds,
        "queries": queries,
        "agreement": agreement,
    }


def compare_phi(one: Sequence[TaskPosterior], other: Sequence[TaskPosterior], learning_rate: float) -> str:
    """AdamW turns rounding of tiny gradients into whole steps of single values, so the bulk is compared: its root mean square."""
    worst = max(float((a.values - b.values).square().mean().sqrt()) for a, b in zip(one, other, strict=True))
    return common.check_close(
        "phi together, root mean square in units of the learning rate", worst / learning_rate, 0.1
    )


def compare_block_scores(served: Served, baseline: BlockLora, tenant: Cell, block: TenantRows) -> str:
    """The baseline's option probabilities at the start against ours, on the support."""
    baseline.start(1)
    with torch.no_grad():
        (found,) = baseline.scores([block], [range(len(block.prompts))])
    theirs = [row.double().softmax(0).tolist() for row in found]
    ours = common.probabilities(
        served.model.predict(served.untempered, [example.query for example in tenant.support], samples=0)
    )
    return common.check_close(
        "mLoRA-style at the start", common.largest_difference(ours, theirs), common.tolerance(served.dtype)
    )


def block_rows(served: Served, tenant: Cell) -> TenantRows:
    """A tenant's support for the baseline."""
    support = served.model.encode_support(tenant.support)
    return TenantRows([example.prompt for example in support], [example.label for example in support])


def in_groups(blocks: Sequence[TenantRows], max_tokens: int) -> list[list[TenantRows]]:
    """Tenants of similar length together, in batches of at most `max_tokens` padded tokens."""
    groups: list[list[TenantRows]] = []
    used = 0
    for block in sorted(blocks, key=lambda block: block.padded_tokens):
        if not groups or used + block.padded_tokens > max_tokens:
            groups.append([])
            used = 0
        groups[-1].append(block)
        used += block.padded_tokens
    return groups


def report_rows(count: int, found: dict[str, Any]) -> list[list[Any]]:
    """One row an arm."""
    adapt, predict = common.medians(found["adapt_seconds"]), common.medians(found["predict_seconds"])
    whole = adapt["one by one"] + predict["one by one"]
    rows: list[list[Any]] = []
    for arm, seconds in adapt.items():
        row: list[Any] = [count, arm, seconds, count / seconds]
        if arm in predict:
            row += [predict[arm], found["queries"] / predict[arm], whole / (seconds + predict[arm])]
        rows.append(row + ["-"] * (7 - len(row)))
    if "together" not in adapt:
        rows.append([count, "together", "no API yet", *["-"] * 4])
    return rows


def measure_memory(options: Any) -> dict[str, int]:
    """Run `memory_child` in a process of its own, which has loaded and done nothing else."""
    command = [
        sys.executable, "-m", "benchmarks.many_tenants", "--memory-child", "--data", str(options.data),
        "--threads", str(options.threads), "--seed", str(options.seed), "--tasks", options.tasks[0],
        "--memory-adapters", str(options.memory_adapters),
    ]  # fmt: skip
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    result: dict[str, int] = json.loads(found.splitlines()[-1])
    return result


def memory_child(served: Served, options: Any) -> None:
    """Growth of resident and of peak memory for each adapter that is kept, against the bytes of its values; printed as JSON.

    All adapters are of one support with other seeds, after two that are thrown away: only what is kept can grow.
    """
    options.shots, options.items = 2, 1
    (tenant,) = draw_tenants(1, options)
    for seed in (0, 1):
        served.model.adapt(tenant.support, seed=seed)
    common.reset_peak()
    before = common.resident_and_peak_bytes()
    seeds = range(options.memory_adapters)
    kept = [served.model.adapt(tenant.support, seed=seed).posterior for seed in seeds]
    after = common.resident_and_peak_bytes()
    resident, peak = ((b - a) // len(kept) for a, b in zip(before, after, strict=True))
    found = {"values of one adapter": kept[0].values.nbytes, "resident growth per adapter": resident}
    print(json.dumps({**found, "peak growth per adapter": peak, "resident at the end": after[0]}))


if __name__ == "__main__":
    main()
