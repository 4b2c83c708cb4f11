"""Running an evaluation: the cells that a results folder lacks, in this process or in several."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter

from abmll.adaptation.settings import AdaptSettings
from abmll.errors import AbmllError
from abmll.meta.collection import Collection
from abmll.model import FewShotModel
from abmll.text.prompting import PromptTemplate
from abmll.text.tasks import Task
from lab.evaluation.config import Entry, EvaluationConfig
from lab.evaluation.harness import run_cell
from lab.evaluation.methods.embeddings import Embeddings
from lab.evaluation.protocol import can_be_tested, check_unseen, classes_of, episode, neighbours, plan
from lab.evaluation.records import Cell, CellResult
from model_store.bases import LoadedBase, load_base
from model_store.encoders import load_sentence_encoder
from model_store.posteriors import LoadedPosterior, load_posterior
from model_store.process_memory import watch_peak


class Evaluation:
    """A configuration with its tasks and posteriors; the base model is loaded when the first cell runs."""

    def __init__(self, config: EvaluationConfig) -> None:
        """Read the data. Raises `AbmllError` for what is not there, and `LeakError` where a theta has seen a test task."""
        self.config = config
        self.collection = Collection.open(config.data.folder)
        wanted = _splits(config, self.collection)
        read = {
            task.name: task
            for task in self.collection.read(_unique([*wanted.values(), config.data.validation]))
        }
        self.tasks: dict[str, Task] = {name: task for name, task in read.items() if can_be_tested(task)}
        self.left_out = [name for name in read if name not in self.tasks]
        self.splits = {split: [n for n in names if n in self.tasks] for split, names in wanted.items()}
        self.validation = [name for name in config.data.validation if name in self.tasks]
        self.posteriors: dict[str, LoadedPosterior] = {
            entry.posterior: load_posterior(entry.posterior) for entry in config.methods if entry.posterior
        }
        for entry in config.methods:
            self._check(entry)
        self.foreign = neighbours(list(self.tasks.values()), self.collection.about)
        self._held: tuple[str, FewShotModel] | None = None

    def cells(self) -> list[Cell]:
        """Every cell that the configuration asks for."""
        return [
            cell
            for entry in self.config.methods
            for cell in plan([entry.name], self._tasks_of(entry), self.shots, self.config.seeds)
        ]

    @property
    def shots(self) -> tuple[str, ...]:
        """k, as text."""
        return tuple(map(str, self.config.shots))

    def run(self, cell: Cell) -> CellResult:
        """One cell. The model of a method is built when its first cell comes."""
        config, task = self.config, self.tasks[cell.task]
        foreign = self.foreign.get(cell.task)
        data = episode(
            task, cell.shots, cell.seed,
            items=config.items, foreign=self.tasks.get(foreign or ""), foreign_items=config.foreign_items,
        )  # fmt: skip
        entry = self._entry(cell.method)
        return run_cell(
            cell, entry.method, self._model(entry), data, classes_of(task), partial(watch_peak, config.device)
        )

    def describe(self, entry: Entry) -> dict[str, Any]:
        """What a method's cells depend on, as plain values."""
        posterior = self.posteriors.get(entry.posterior or "")
        shared = ("base", "quantisation", "adapter", "template", "serve", "items", "foreign_items")
        values = TypeAdapter(EvaluationConfig).dump_python(self.config, mode="json")
        values["adapter"] = self.config.posterior.to_json()
        return {
            **TypeAdapter(Entry).dump_python(entry, mode="json", exclude={"name", "splits"}),
            "digest": posterior.manifest.digest if posterior else None,
            **{name: values[name] for name in shared},
        }

    @cached_property
    def _base(self) -> LoadedBase:
        if self.config.threads:
            torch.set_num_threads(self.config.threads)
        return load_base(
            self.config.base,
            quantisation=self.config.quantisation,
            device=self.config.device,
            keep_dequantised=self.config.keep_dequantised,
            dtype=self.config.dtype,
            progress=False,
        )

    def _entry(self, name: str) -> Entry:
        return next(entry for entry in self.config.methods if entry.name == name)

    def _tasks_of(self, entry: Entry) -> list[str]:
        chosen = [names for split, names in self.splits.items() if not entry.splits or split in entry.splits]
        names = _unique([*chosen, self.validation if entry.name in self.config.temperature else ()])
        if isinstance(entry.method, Embeddings):
            names = [name for name in names if classes_of(self.tasks[name])]
        return names

    def _check(self, entry: Entry) -> None:
        """Raise unless the posterior of `entry` is for this base and has seen none of its tasks."""
        if not entry.posterior:
            return
        manifest = self.posteriors[entry.posterior].manifest
        if "data" not in manifest.training:
            raise AbmllError(f"{manifest.id} does not say what it was trained on: it cannot be tested")
        trained_on = {row["task"] for row in manifest.training["data"]}
        check_unseen(manifest.id, trained_on, self._tasks_of(entry), self.collection.about)

    def _model(self, entry: Entry) -> FewShotModel:
        """The entry's model; one at a time is held, since a base carries one set of adapters."""
        if self._held is None or self._held[0] != entry.name:
            self._held = (entry.name, self._build(entry))
        return self._held[1]

    def _build(self, entry: Entry) -> FewShotModel:
        config, base = self.config, self._base
        adapter, template, serve = config.posterior, config.template, config.serve
        posterior = self.posteriors.get(entry.posterior or "")
        if posterior:
            manifest = posterior.manifest
            if (manifest.base.id, manifest.base.revision) != (base.identity.id, base.identity.revision):
                raise AbmllError(
                    f"{manifest.id} was trained on {manifest.base.id}, not on {base.identity.id}"
                )
            adapter, template = manifest.config, PromptTemplate.from_json(manifest.template)
            serve = AdaptSettings(**manifest.adapt)
        if not entry.noise:
            adapter = replace(adapter, noise=adapter.noise.as_point())
        encoder = entry.method.encoder if isinstance(entry.method, Embeddings) else adapter.sentence_encoder
        model = FewShotModel(
            base.model,
            base.tokenizer,
            adapter,
            template=template,
            defaults=serve,
            sentences=load_sentence_encoder(encoder, device=config.device, progress=False),
        )
        theta = posterior.prior if posterior else model.prior
        model.prior = theta if entry.noise else theta.without_noise()
        return model


def run_evaluation(
    config: EvaluationConfig, folder: Path, on_cell: Callable[[int, int, Cell], None], *, processes: int = 1
) -> None:
    """Run the cells that `folder` lacks, in this process or in several; `on_cell` gets (done, all, the latest cell).

    Raises `AbmllError` where the folder holds another method under one of the names.
    """
    evaluation = Evaluation(config)
    folder.mkdir(parents=True, exist_ok=True)
    methods = {entry.name: evaluation.describe(entry) for entry in config.methods}
    _claim(folder / "methods.json", methods, "other methods of the names")
    _claim(folder / "foreign.json", evaluation.foreign, "other out-of-distribution tasks for")
    cells = evaluation.cells()
    todo = [cell for cell in cells if not (folder / cell.path).exists()]
    done = len(cells) - len(todo)
    for number, cell in enumerate(_run_all(evaluation, folder, todo, processes), start=done + 1):
        on_cell(number, len(cells), cell)


def _run_all(evaluation: Evaluation, folder: Path, cells: Sequence[Cell], processes: int) -> Iterable[Cell]:
    if processes == 1 or len(cells) < 2:
        for cell in cells:
            evaluation.run(cell).save(folder)
            yield cell
        return
    with ProcessPoolExecutor(
        min(processes, len(cells)),
        mp_context=multiprocessing.get_context("spawn"),  # torch's threads do not survive a fork
        initializer=_Worker.start,
        initargs=(evaluation.config, folder),
    ) as pool:
        try:
            for future in as_completed([pool.submit(_Worker.run, cell) for cell in cells]):
                yield future.result()
        except BaseException:  # an interrupt too: only what is running is waited for
            pool.shutdown(wait=False, cancel_futures=True)
            raise


class _Worker:
    """A process's own evaluation: set when the process starts, used by its one thread."""

    evaluation: Evaluation
    folder: Path

    @classmethod
    def start(cls, config: EvaluationConfig, folder: Path) -> None:
        cls.evaluation, cls.folder = Evaluation(config), folder

    @classmethod
    def run(cls, cell: Cell) -> Cell:
        cls.evaluation.run(cell).save(cls.folder)
        return cell


def _splits(config: EvaluationConfig, collection: Collection) -> dict[str, list[str]]:
    data = config.data
    found = {split: collection.names(split, data.side) for split in data.splits}
    if data.tasks:
        found["tasks"] = list(data.tasks)
    found = {split: [name for name in names if name not in data.leave_out] for split, names in found.items()}
    overlap = [name for name in _unique(found.values()) if name in data.validation]
    if not any(found.values()) or overlap:
        raise AbmllError(f"no tasks to test on, or some are for validation too: {', '.join(overlap)}")
    return found


def _unique(lists: Iterable[Iterable[str]]) -> list[str]:
    return list(dict.fromkeys(name for names in lists for name in names))


def _claim(path: Path, values: dict[str, Any], what: str) -> None:
    """Record `values` by name, and refuse to mix two of one name. Raises `AbmllError`."""
    values = json.loads(json.dumps(values))
    known = json.loads(path.read_text("utf-8")) if path.exists() else {}
    changed = [name for name in values if name in known and known[name] != values[name]]
    if changed:
        raise AbmllError(f"{path.parent.name} holds {what} {', '.join(changed)}: choose another folder")
    path.write_text(json.dumps({**known, **values}, indent=1) + "\n", "utf-8")
