"""Measure how far the probabilities of an input depend on the inputs beside it.

    python -m benchmarks.batch_mates --data ../shared/data --threads 1
    ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16 python -m benchmarks.batch_mates --data ../shared/data \\
        --threads 1 --page batch_mates_without_amx

The same inputs are answered alone and with others in one request, with the same adapter, by the
base in the dtype of this machine and in fp32. Inputs are those of tasks; the same behind one
prefix, which they then share in a row; and the same beside a text that is too long for plain
attention. The second command keeps a processor with AMX from using it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from abmll.decoder.attention import LONGEST_PLAIN_TOKENS
from abmll.model import FewShotModel
from abmll.posterior.posteriors import TaskPosterior
from abmll.text.tasks import Query
from benchmarks import common
from model_store.models import Start, build_model
from model_store.posteriors import load_posterior, shipped_posteriors
from model_store.pretrained.bases import load_base
from model_store.pretrained.convert import compute_dtype

TASKS = ("tweet_eval-irony", "emotion")
PREFIX = "I am writing to you about the text below, which a reader sent us last week. What do you say? "
PROBES = 8
RUNS = ((0, 3), (0, 31), (16, 7))  # samples and mates


def main() -> None:
    parser = common.arguments(__doc__, data=True)
    parser.add_argument("--tasks", nargs="+", default=TASKS)
    parser.add_argument("--page", default="batch_mates", help="name of the results")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    native = str(compute_dtype("cpu")).removeprefix("torch.")
    rows: list[Sequence[object]] = []
    for dtype in dict.fromkeys((native, "float32")):
        model = load(options.posterior, dtype)
        for name in options.tasks[: 1 if options.quick else None]:
            rows += task_rows(model, name, dtype, options)
    head = ["dtype", "task", "options", "inputs", "S", "mates", "largest difference", "answers changed"]
    about = (
        f"Largest difference of any option's probability of up to {PROBES} inputs, alone and with mates in one request; "
        "16 examples of each task, the default settings."
    )
    worst = {dtype: max(float(str(row[6])) for row in rows if row[0] == dtype) for dtype, *_ in rows}
    bound = "; ".join(f"{dtype}: {value:.1e}" for dtype, value in worst.items())
    title = "Does an answer depend on the inputs beside it?"
    tables = [f"Largest of all: {bound}.", common.table(head, rows)]
    common.write_results(options.page, title, [about], tables, {"rows": rows, "worst": worst}, options)


def load(posterior: str | None, dtype: Any) -> FewShotModel:
    """Load the model of a posterior, computing in `dtype`."""
    loaded = load_posterior(posterior or shipped_posteriors()[0])
    of = loaded.manifest.base
    base = load_base(of.id, quantisation=of.quantisation, dtype=dtype, progress=False)
    return build_model(base, Start.of(loaded), progress=False)


def task_rows(model: FewShotModel, name: str, dtype: str, options: Any) -> list[Sequence[object]]:
    """Return the rows of one task: each kind of inputs, number of samples and number of mates."""
    cell = common.read_cell(options.data, name, 16, 1 + max(mates for _, mates in RUNS), options.seed)
    adapted = model.adapt(cell.support, seed=options.seed).posterior
    behind = [Query(PREFIX + query.input, query.options) for query in cell.queries]
    long = Query("word " * (LONGEST_PLAIN_TOKENS + 100), cell.queries[0].options)
    kinds = {
        "of the task": cell.queries,
        "behind one prefix": behind,
        "beside a long text": (*cell.queries[:2], long, *cell.queries[2:]),
    }
    found: list[Sequence[object]] = []
    for kind, queries in kinds.items():
        alone: dict[int, list[list[float]]] = {}
        for samples, mates in RUNS:
            if samples not in alone:
                one_by_one = [
                    answers(model, adapted, [query], samples, options.seed) for query in queries[:PROBES]
                ]
                alone[samples] = [of_one[0] for of_one in one_by_one]
            beside = answers(model, adapted, queries[: 1 + mates], samples, options.seed)[:PROBES]
            own = alone[samples][: len(beside)]
            largest = common.largest_difference(own, beside)
            changed = sum(p.index(max(p)) != q.index(max(q)) for p, q in zip(own, beside, strict=True))
            row = (dtype, name, len(own[0]), kind, samples, mates, f"{largest:.1e}", changed)
            print(*row, flush=True)
            found.append(row)
    return found


def answers(
    model: FewShotModel, adapted: TaskPosterior, queries: Sequence[Query], samples: int, seed: int
) -> list[list[float]]:
    """Return the predictive of each query, answered in one request."""
    return common.probabilities(model.predict(adapted, queries, samples=samples, seed=seed))


if __name__ == "__main__":
    main()
