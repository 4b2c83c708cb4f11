"""The state of a meta-training run between visits, and its checkpoint."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from abmll.adaptation.adamw import AdamW


@dataclass
class MetaState:
    """State of a run between visits.

    `visit` is the number of visits so far. `theta` is [P]. `average` [P] is the sum of theta over
    `averaged` visits, or with `ema` their exponential average, where `averaged` is 1. `inner` and
    `outer` are the states of the two optimisers.
    """

    visit: int
    theta: Tensor
    average: Tensor
    averaged: int
    inner: AdamW
    outer: AdamW

    @classmethod
    def start(cls, theta: Tensor) -> MetaState:
        """Return the state before the first visit, on the device of `theta`."""
        return cls(0, theta, torch.zeros_like(theta), 0, AdamW.zeros_like(theta), AdamW.zeros_like(theta))

    def result(self) -> Tensor:
        """Return the average of theta over visits, or theta itself before there is one."""
        return self.average / self.averaged if self.averaged else self.theta

    def save(self, path: Path) -> None:
        """Write a checkpoint. A failure leaves an earlier one as it was."""
        tensors = {
            "theta": self.theta, "average": self.average,
            "inner.first": self.inner.first, "inner.second": self.inner.second,
            "outer.first": self.outer.first, "outer.second": self.outer.second,
        }  # fmt: skip
        counts = {
            "visit": self.visit,
            "averaged": self.averaged,
            "inner": self.inner.step,
            "outer": self.outer.step,
        }
        partial = path.with_suffix(".partial")
        # `save_file` would give it to this user alone, whatever the umask.
        partial.write_bytes(save(tensors, {"counts": json.dumps(counts)}))
        partial.replace(path)

    @classmethod
    def load(cls, path: Path, device: torch.device | str = "cpu") -> MetaState:
        """Read a checkpoint that `save` wrote."""
        tensors = load_file(path, device=str(device))
        with safe_open(path, "pt") as file:
            counts = json.loads(file.metadata()["counts"])
        return cls(
            counts["visit"], tensors["theta"], tensors["average"], counts["averaged"],
            AdamW(tensors["inner.first"], tensors["inner.second"], counts["inner"]),
            AdamW(tensors["outer.first"], tensors["outer.second"], counts["outer"]),
        )  # fmt: skip
