"""The tables of the page: quality and cost of each arm, one adapter against one for each, gates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from benchmarks import common
from benchmarks.decisions.arms import Cost
from benchmarks.decisions.cells import Cell
from benchmarks.decisions.collections import Decisions
from benchmarks.decisions.gates import DELTA, SCORES, all_outcomes, gated
from benchmarks.decisions.measures import SIGNALS
from benchmarks.decisions.summaries import Interval, Values, by_question, difference, paired, total

ZERO_SHOT = "zero-shot"
ONE = "one adapter for all questions"
EACH = "an adapter for each question"
EMBEDDINGS = "embeddings and logistic regression"
SETFIT = "SetFit"
IN_CONTEXT = "cases in the prompt of the base"
TARGETS = (0.05, 0.1, 0.2)

Collections = Mapping[str, Decisions]


def sections(cells: Sequence[Cell], collections: Collections) -> list[str]:
    """Return headings and tables."""
    arms = _by_arm(cells)
    found = ["## All collections", _quality(arms, collections)]
    for name in collections:
        own = [cell for cell in cells if cell.key.collection == name]
        if own and len(collections) > 1:
            found += [f"## {name}", _quality(_by_arm(own), collections)]
    found += [
        "## One adapter for all questions, less one for each",
        "Accuracy and NLL are paired: question by question, over the same seeds. Costs are ratios of sums, "
        "one adapter over one for each.",
        _one_and_each(arms, collections),
        '## Telling "cannot tell" from the rest: AUROC',
        _areas(arms, collections),
        "## What a certified gate accepts",
        f'Answers of one adapter, pooled over its questions. "Cannot tell" counts as wrong whatever is answered. '
        f"Half of the tested cases certify (delta {DELTA}), the other half is accepted or not. `possible` is the "
        "largest proportion with an error within the target, which nobody knows beforehand.",
        _gates(arms, collections),
    ]
    return found


def _by_arm(cells: Sequence[Cell]) -> dict[tuple[str, int], list[Cell]]:
    found: dict[tuple[str, int], list[Cell]] = {}
    for cell in cells:
        found.setdefault((cell.key.arm, cell.key.labelled), []).append(cell)
    return found


def _accuracy(cells: Sequence[Cell], collections: Collections) -> Values:
    return by_question(cells, collections, lambda measured: measured.accuracy)


def _nll(cells: Sequence[Cell], collections: Collections) -> Values:
    return by_question(cells, collections, lambda measured: measured.nll)


def _learn(cell: Cell) -> Cost:
    return cell.answers.learn


def _answer(cell: Cell) -> Cost:
    return cell.answers.answer


def _both(cell: Cell) -> Cost:
    return cell.answers.learn + cell.answers.answer


def _quality(arms: Mapping[tuple[str, int], Sequence[Cell]], collections: Collections) -> str:
    head = ["arm", "cases", "accuracy", "NLL", "learn s", "answer s", "cells"]
    rows: list[list[object]] = []
    for (arm, labelled), cells in arms.items():
        learn = float(np.mean([cell.answers.learn.processor for cell in cells]))
        answer = float(np.mean([cell.answers.answer.processor for cell in cells]))
        quality = [Interval.of(of(cells, collections).values()) for of in (_accuracy, _nll)]
        rows.append([arm, labelled, *quality, learn, answer, len(cells)])
    return common.table(head, rows)


def _one_and_each(arms: Mapping[tuple[str, int], Sequence[Cell]], collections: Collections) -> str:
    rows: list[list[object]] = []
    for labelled in sorted({count for arm, count in arms if arm == ONE}):
        one, each = paired(arms[ONE, labelled], arms.get((EACH, labelled), []))
        if not one:
            continue
        costs = [
            total(map(of, one)).processor / total(map(of, each)).processor for of in (_learn, _answer, _both)
        ]
        quality = [
            difference(of(one, collections), of(each, collections)) for of in (_accuracy, _nll)
        ]  # fmt: skip
        rows.append([labelled, *quality, *costs])
    return common.table(["cases", "accuracy", "NLL", "cost of learning", "of answering", "of both"], rows)


def _areas(arms: Mapping[tuple[str, int], Sequence[Cell]], collections: Collections) -> str:
    rows: list[list[object]] = []
    for (arm, labelled), cells in arms.items():
        areas = [
            Interval.of(
                by_question(cells, collections, lambda found, name=name: getattr(found, name)).values()  # type: ignore[misc]
            )
            for name in SIGNALS
        ]
        rows.append([arm, labelled, *areas])
    return common.table(["arm", "cases", "answerable", "typicality", "mutual information"], rows)


def _gates(arms: Mapping[tuple[str, int], Sequence[Cell]], collections: Collections) -> str:
    head = ["cases", "taken as confidence", "target", "certified", "accepted", "error of these",
            "untellable of these", "possible"]  # fmt: skip
    rows: list[list[object]] = []
    for (arm, labelled), cells in arms.items():
        if arm not in (ZERO_SHOT, ONE):
            continue
        for target in TARGETS:
            for name, score in SCORES.items():
                outcomes = all_outcomes(cells, collections, score)
                if outcomes:
                    found = gated(outcomes, target)
                    numbers = ["-" if np.isnan(value) else value for value in vars(found).values()]
                    rows.append([labelled, name, target, *numbers])
    return common.table(head, rows)
