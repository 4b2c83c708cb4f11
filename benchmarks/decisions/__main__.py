"""Measure many questions about one input: what an adapter learns of them, and what they cost.

    python -m benchmarks.decisions --data ../shared/data

Collections: two of our own making (`benchmarks/decisions/collections`), with house rules and with
questions that an input does not answer; and three predicates on one set of comments of the task
collection, which no posterior here was trained on. Every arm answers the same inputs.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np

from abmll.model import FewShotModel
from abmll.text.questions import Question
from benchmarks import common
from benchmarks.decisions import arms
from benchmarks.decisions.collections import Decisions, read_comments, read_own
from benchmarks.decisions.measures import measure

LABELLED = (5, 10, 20)
SEEDS = (13, 21, 42)
TESTED = 40
ARMS: dict[str, arms.Arm] = {
    "one adapter for all questions": arms.one_adapter(),
    "an adapter for each question": arms.adapter_each(),
    "embeddings and logistic regression": arms.embeddings,
}
# Tokens of the input whose questions are timed, and how many questions.
TIMED_TOKENS, TIMED_QUESTIONS = 250, 10


def main() -> None:
    parser = common.arguments(__doc__, repeats=5, data=True)
    parser.add_argument(
        "--in-context", type=int, default=10, help="cases of the in-context arm; 0 leaves it out"
    )
    options = parser.parse_args()
    labelled: Sequence[int] = LABELLED
    seeds: Sequence[int] = SEEDS
    tested = TESTED
    if options.quick:
        labelled, seeds, tested, options.repeats, options.in_context = (4,), (13,), 2, 1, 0
    served = common.load_served(options.posterior, options.threads)
    collections = [read_own("inbox"), read_own("incidents"), read_comments(options.data)]
    found: dict[str, Any] = {}
    tables = []
    for decisions in collections[: 1 if options.quick else None]:
        rows = compared(served.model, decisions, labelled, seeds, tested, options.in_context)
        found[decisions.name] = rows
        tables.append(
            f"## {decisions.name}: {len(decisions.questions)} questions, {len(decisions.cases)} cases"
        )
        tables.append(common.table(HEAD, [[row[name] for name in HEAD] for row in rows]))
    times = timed(served.model, options)
    tables += ["## Time of one call", common.table(["what", "seconds", "times one question"], times)]
    about = (
        f"Of each collection {tested} cases are tested on, and others are learned from; means of the support "
        f"seeds {', '.join(map(str, seeds))}. Accuracy and NLL (nats) are over the answers that can be told. "
        'AUROC: how well "cannot tell" is told from the rest, by the probability that an answer can be told '
        "(`answerable`), by typicality and by mutual information; mean over questions.",
        f"Time: one input of {TIMED_TOKENS} tokens, S = {arms.SAMPLES}; `learn s` and `answer s` are for all "
        "questions of all tested inputs.",
    )
    data = {"quality": found, "seconds": times}
    common.write_results(
        "decisions", "Many questions about one input", about, tables, data, options, served.dtype
    )


HEAD = [
    "arm", "cases", "accuracy", "NLL", "AUROC answerable", "AUROC typicality", "AUROC information", "learn s",
    "answer s",
]  # fmt: skip


def compared(
    model: FewShotModel,
    decisions: Decisions,
    labelled: Sequence[int],
    seeds: Sequence[int],
    tested: int,
    in_context: int,
) -> list[dict[str, Any]]:
    """Return a row of the table for each arm and number of cases."""
    wanted: list[tuple[str, arms.Arm, int]] = [("zero-shot", arms.zero_shot, 0)]
    wanted += [(name, arm, count) for count in labelled for name, arm in ARMS.items()]
    if in_context:
        wanted.append(("cases in the prompt of the base", arms.in_context, in_context))
    rows = []
    for name, arm, count in wanted:
        runs = []
        for seed in seeds:
            cases, test = decisions.split(count, tested, seed)
            answers = arm(model, decisions.questions, cases, [case.input for case in test], seed)
            measured = asdict(measure(decisions.questions, test, answers.rows))
            runs.append({**measured, "learn": answers.learn_seconds, "answer": answers.answer_seconds})
        mean = {key: float(np.mean([run[key] for run in runs])) for key in runs[0]}
        rows.append(dict(zip(HEAD, [
            name, count, mean["accuracy"], mean["nll"], mean["answerable"], mean["typicality"],
            mean["information"], mean["learn"], mean["answer"],
        ], strict=True)))  # fmt: skip
        print(*rows[-1].values(), flush=True)
    return rows


def timed(model: FewShotModel, options: argparse.Namespace) -> list[list[object]]:
    """Return the seconds of one question, of ten, and of one about ten inputs."""
    questions = [
        Question(f"q{i}", "predicate", f"Does the text mention the number {i}?", ("yes", "no"))
        for i in range(TIMED_QUESTIONS)
    ]
    words = [f"word{i}" for i in range(TIMED_TOKENS)]
    ids = model.encoder.encode(questions[0].query(" ".join(words))).prompt[:TIMED_TOKENS]
    texts = [f"{i} {model.encoder.decode(ids)}" for i in range(TIMED_QUESTIONS)]
    predict = partial(model.predict, None, samples=arms.SAMPLES)
    runs = {
        "one question": partial(predict, [questions[0].query(texts[0])]),
        "ten questions": partial(predict, [question.query(texts[0]) for question in questions]),
        "one question about ten inputs": partial(predict, [questions[0].query(text) for text in texts]),
    }
    for run in runs.values():
        run()
    seconds = common.medians(common.interleaved(runs, options.repeats))
    return [[name, value, value / seconds["one question"]] for name, value in seconds.items()]


if __name__ == "__main__":
    main()
