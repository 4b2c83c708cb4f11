"""Where a fault's benchmark runs: its folder, its base model and the options of its servers."""

from __future__ import annotations

import importlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks.http_server import Server


@dataclass(frozen=True)
class Setup:
    """How long and on what: `times` counts faults, `rows` are a batch's, the rest is the server's."""

    folder: Path
    seconds: float
    times: int
    seed: int
    executor: str
    workers: int
    rows: int
    model: tuple[str, ...]
    more: tuple[str, ...] = ()
    random: random.Random = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "random", random.Random(self.seed))

    @property
    def options(self) -> list[str]:
        """The options of every server."""
        own = [*self.model, "--executor", self.executor, "--workers", str(self.workers), "--threads", "1"]
        return [*own, *self.more]

    def server(
        self,
        options: Sequence[str] = (),
        *,
        name: str = "data",
        environment: Mapping[str, str] | None = None,
        prefix: Sequence[str] = (),
    ) -> Server:
        """Start a server on the data folder of this name."""
        return Server(
            self.folder / name, [*self.options, *options],
            ready_within_seconds=180, environment=environment, prefix=prefix,
        )  # fmt: skip

    def log(self, name: str = "data") -> str:
        """Return the log of the servers on the data folder of this name."""
        return (self.folder / f"{name}.log").read_text("utf-8", "replace")


def of_tests(module: str) -> Any:
    """Import a module of our tests: they are part of a checkout, not of what mypy checks here."""
    return importlib.import_module(f"tests.{module}")


def tiny_base(folder: Path) -> tuple[str, ...]:
    """Write a random model of a few layers, and return the server's options for it."""
    tiny = of_tests("tiny")
    torch.manual_seed(0)
    config = tiny.CONFIGS["llama"]()
    config.max_position_embeddings = 1024
    transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    tiny.tiny_tokenizer().save_pretrained(folder)
    return (
        "--model", str(folder), "--posterior", "untrained", "--quantisation", "none",
        "--cache-dir", str(folder.parent / "cache"),
    )  # fmt: skip
