"""Compare ways to answer many questions about one input: how well, and at what cost.

    python -m benchmarks.decisions --data ../shared/data --setfit SETFIT-VENV/bin/python

Collections: two of our own making (`benchmarks/decisions/collections`), with house rules and with
questions that an input does not answer; and three predicates on one set of comments of the task
collection, which no posterior here was trained on. Every arm answers the same inputs.

Each cell (collection, arm, labelled cases, seed) is stored once it is done, in a file of this
posterior in `runs/decisions`. A run that is stopped goes on from there; `--fresh` begins anew. With
`--minutes`, no cell begins later, and the page is made of those that are there. The arm SetFit
needs a Python of its own: `python -m venv SETFIT-VENV; SETFIT-VENV/bin/pip install setfit==1.2.0`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from abmll.model import FewShotModel
from abmll.text.questions import Question
from benchmarks import common
from benchmarks.decisions import arms, tables
from benchmarks.decisions.cells import Cell, CellFile, Key
from benchmarks.decisions.collections import Decisions, read_comments, read_own
from benchmarks.decisions.setfit_arm import setfit

LABELLED, SEEDS, TESTED = (5, 10, 20), (13, 21), 24
# Cases of the arms that cost most.
COSTLY = 10
CELLS = Path("runs/decisions")
# Tokens of the input whose questions are timed, and how many questions.
TIMED_TOKENS, TIMED_QUESTIONS = 250, 10


def main() -> None:
    parser = common.arguments(__doc__, repeats=5, data=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--tested", type=int, default=TESTED, help="cases of a collection to test on")
    parser.add_argument("--minutes", type=float, default=45, help="no cell begins later")
    parser.add_argument("--setfit", type=Path, help="Python that has SetFit; without it, no such arm")
    parser.add_argument("--fresh", action="store_true", help="forget the cells of earlier runs")
    options = parser.parse_args()
    started = time.perf_counter()
    served = common.load_served(options.posterior, options.threads)
    own = [read_own(name) for name in ("inbox", "incidents")]
    collections = {found.name: found for found in (*own, read_comments(options.data))}
    keys = list(planned(collections, options))
    folder = common.QUICK_RESULTS / "decisions" if options.quick else CELLS
    path = folder / f"{served.manifest.id}-{served.manifest.digest[:8]}.jsonl"
    if options.fresh:
        path.unlink(missing_ok=True)
    file = CellFile(path)
    fill(file, keys, served.model, collections, options, started + 60 * options.minutes)
    tokens, questions = (16, 2) if options.quick else (TIMED_TOKENS, TIMED_QUESTIONS)
    times = timed(served.model, tokens, questions, 1 if options.quick else options.repeats)
    missing = [key for key in keys if key not in file.cells]
    write(file.of(keys), missing, collections, times, served, options)


def planned(collections: Mapping[str, Decisions], options: argparse.Namespace) -> Iterator[Key]:
    """Yield the cells in an order in which a run that ends early has the most to say.

    First all arms of the first seed, then the cheap arms of the other seeds.
    """
    if options.quick:
        for arm in (tables.ZERO_SHOT, tables.ONE, tables.EACH, tables.EMBEDDINGS):
            yield Key("inbox", arm, 0 if arm == tables.ZERO_SHOT else 4, 2, options.seeds[0])
        return
    cheap = [(tables.ZERO_SHOT, 0)]
    cheap += [(arm, count) for count in LABELLED for arm in (tables.ONE, tables.EACH, tables.EMBEDDINGS)]
    costly = [(tables.IN_CONTEXT, COSTLY)] + [(tables.SETFIT, COSTLY)] * bool(options.setfit)
    first, *others = options.seeds
    wanted = [(arm, first) for arm in cheap + costly]
    wanted += [(arm, seed) for arms_of in (cheap, costly) for seed in others for arm in arms_of]
    for (arm, count), seed in wanted:
        for name in collections:
            yield Key(name, arm, count, options.tested, seed)


def fill(
    file: CellFile,
    keys: Sequence[Key],
    model: FewShotModel,
    collections: Mapping[str, Decisions],
    options: argparse.Namespace,
    deadline: float,
) -> None:
    """Compute the cells that are not there, until the deadline (of `time.perf_counter`)."""
    runs: dict[str, arms.Arm] = {
        tables.ZERO_SHOT: arms.zero_shot,
        tables.ONE: arms.one_adapter,
        tables.EACH: arms.adapter_each,
        tables.EMBEDDINGS: arms.embeddings,
        tables.IN_CONTEXT: arms.in_context,
    }
    if options.setfit:
        runs[tables.SETFIT] = setfit(options.setfit)
    for number, key in enumerate(keys, 1):
        if key in file.cells or time.perf_counter() > deadline:
            continue
        decisions = collections[key.collection]
        cases, tested = decisions.split(key.labelled, key.tested, key.seed)
        inputs = [case.input for case in tested]
        trial = arms.Trial(decisions.questions, cases, inputs, key.seed)
        cell = Cell(key, runs[key.arm](model, trial))
        file.add(cell)
        seconds = cell.answers.learn.seconds + cell.answers.answer.seconds
        left = max(0.0, deadline - time.perf_counter()) / 60
        print(f"{number}/{len(keys)} {tuple(key)}: {seconds:.1f} s; {left:.1f} min left", flush=True)


def write(
    cells: Sequence[Cell],
    missing: Sequence[Key],
    collections: Mapping[str, Decisions],
    times: list[list[object]],
    served: common.Served,
    options: argparse.Namespace,
) -> None:
    """Write the page of the cells."""
    seeds = sorted({cell.key.seed for cell in cells})
    tested = max(cell.key.tested for cell in cells)
    names = list(dict.fromkeys(cell.key.collection for cell in cells))
    counts = ", ".join(f"{name} ({len(collections[name].questions)} questions)" for name in names)
    about = (
        f"Collections: {counts}. Of each, {tested} cases are tested on, and others are learned from; "
        f"support seeds {', '.join(map(str, seeds))}. Posterior `{served.manifest.id}`, S = {arms.SAMPLES}. "
        "The code and the posterior of a cell that an earlier run stored are those of that run.",
        "A question is one value, the mean over the seeds; intervals (95 %) are over questions. Accuracy and "
        "NLL (nats) are over the answers that an input tells. Seconds are of the processor, for all questions "
        "of all tested inputs: `learn s` and `answer s` are means of a cell.",
        f"Cells that are not there: {len(missing)} of {len(missing) + len(cells)}.",
    )
    sections = tables.sections(cells, {name: collections[name] for name in names})
    sections += [
        f"## Time of one call, with inputs of {16 if options.quick else TIMED_TOKENS} tokens",
        common.table(["what", "seconds", "times one question"], times),
    ]
    data = {
        "cells": [
            {
                **cell.key._asdict(),
                "learn": asdict(cell.answers.learn),
                "answer": asdict(cell.answers.answer),
                "questions": {
                    name: asdict(found) for name, found in cell.measured(collections[cell.key.collection]).items()
                },
            }
            for cell in cells
        ],
        "missing": missing,
        "seconds": times,
    }  # fmt: skip
    title = "Many questions about one input"
    common.write_results("decisions", title, about, sections, data, options, served.dtype)


def timed(model: FewShotModel, tokens: int, count: int, repeats: int) -> list[list[object]]:
    """Return the seconds of one question, of `count`, and of one about so many inputs.

    An input has about `tokens` tokens.
    """
    questions = [
        Question(f"q{i}", "predicate", f"Does the text mention the number {i}?", ("yes", "no"))
        for i in range(count)
    ]
    words = [f"word{i}" for i in range(tokens)]
    ids = model.encoder.encode(questions[0].query(" ".join(words))).prompt[:tokens]
    texts = [f"{i} {model.encoder.decode(ids)}" for i in range(count)]
    predict = partial(model.predict, None, samples=arms.SAMPLES)
    runs = {
        "one question": partial(predict, [questions[0].query(texts[0])]),
        f"{count} questions": partial(predict, [question.query(texts[0]) for question in questions]),
        f"one question about {count} inputs": partial(predict, [questions[0].query(text) for text in texts]),
    }
    for run in runs.values():
        run()
    seconds = common.medians(common.interleaved(runs, repeats))
    return [[name, value, value / seconds["one question"]] for name, value in seconds.items()]


if __name__ == "__main__":
    main()
