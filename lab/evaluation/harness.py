"""One cell from its data to its result. What a model is and where results lie is for the caller to know."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from abmll.model import FewShotModel
from lab.evaluation.methods.contract import Method
from lab.evaluation.records import Cell, CellResult, Cost, Episode, pad

# Starts to watch memory, and gives what tells the peak since then, in bytes.
WatchMemory = Callable[[], Callable[[], int]]


def run_cell(
    cell: Cell,
    method: Method,
    model: FewShotModel,
    episode: Episode,
    classes: tuple[str, ...],
    watch_memory: WatchMemory,
) -> CellResult:
    """Let `method` answer the episode's own and foreign queries in one go, and keep every answer with what it cost."""
    peak_bytes, started = watch_memory(), time.perf_counter()
    queries = (*episode.queries, *episode.foreign)
    answers, effort = method.answer(model, episode.support, queries, cell.seed)
    seconds = time.perf_counter() - started
    own, foreign = answers[: len(episode.queries)], answers[len(episode.queries) :]
    probabilities, widths = pad([answer.probabilities for answer in own])
    return CellResult(
        cell=cell,
        probabilities=probabilities,
        widths=widths,
        labels=np.array(episode.labels, dtype=np.int64),
        mutual_information=np.array([answer.mutual_information for answer in own]),
        foreign_probabilities=pad([answer.probabilities for answer in foreign])[0],
        foreign_information=np.array([answer.mutual_information for answer in foreign]),
        classes=classes,
        support_size=len(episode.support),
        cost=Cost(effort.gradient_steps, effort.tokens, effort.adapt_seconds, seconds, peak_bytes()),
    )
