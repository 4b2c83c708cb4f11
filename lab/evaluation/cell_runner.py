"""Run the cells of a study, each with the model that its method asks for."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property, partial

import numpy as np
import torch

from abmll.model import FewShotModel
from lab.evaluation.cells import Cell, CellResult, Cost, Episode, pad
from lab.evaluation.configuration import Entry
from lab.evaluation.methods.contract import Method
from lab.evaluation.protocol import classes_of
from lab.evaluation.study import Study
from model_store.models import Start, build_model
from model_store.pretrained.bases import LoadedBase, load_base
from model_store.process_memory import watch_peak

# Starts to watch memory, and returns a function of the peak since then in bytes.
WatchMemory = Callable[[], Callable[[], int]]


class CellRunner:
    """Owns the base and the model of the latest method on it.

    The base is loaded for the first cell.
    """

    def __init__(self, study: Study) -> None:
        self.study = study
        self._held: tuple[str, FewShotModel] | None = None

    def run(self, cell: Cell) -> CellResult:
        """Run one cell.

        Raises `PosteriorMismatchError` where the method's posterior was made for another base.
        """
        entry = self.study.entry(cell.method)
        return run_cell(
            cell,
            entry.method,
            self._model(entry),
            self.study.episode(cell),
            classes_of(self.study.tasks[cell.task]),
            partial(watch_peak, self.study.config.device),
        )

    @cached_property
    def _base(self) -> LoadedBase:
        config = self.study.config
        if config.threads:
            torch.set_num_threads(config.threads)
        return load_base(
            config.base,
            quantisation=config.quantisation,
            device=config.device,
            keep_dequantised=config.keep_dequantised,
            dtype=config.dtype,
            progress=False,
        )

    def _model(self, entry: Entry) -> FewShotModel:
        """Return the entry's model. One is held at a time: a base carries one set of adapters."""
        if self._held is None or self._held[0] != entry.name:
            self._held = (entry.name, self._build(entry))
        return self._held[1]

    def _build(self, entry: Entry) -> FewShotModel:
        config, posterior = self.study.config, self.study.posterior(entry)
        start = Start.of(posterior) if posterior else Start(config.posterior, config.template, config.serve)
        return build_model(
            self._base,
            replace(start, point=not entry.noise),
            sentence_encoder=entry.method.sentence_encoder,
            progress=False,
        )


def run_cell(
    cell: Cell,
    method: Method,
    model: FewShotModel,
    episode: Episode,
    classes: tuple[str, ...],
    watch_memory: WatchMemory,
) -> CellResult:
    """Let `method` answer the episode's own and foreign queries; return the answers and their cost.

    `classes` are the label words of a task with fixed classes, and empty for multiple choice.
    """
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
