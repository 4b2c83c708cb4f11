"""The arm SetFit (Tunstall et al. 2022), with the sentence encoder that the served model has."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from abmll.model import FewShotModel
from benchmarks.decisions.arms import Answer, Answers, Arm, Cost, Trial, by_input, from_classes, of_question
from model_store.pretrained.sentence_encoders import fetch_sentence_encoder

ENCODER = "all-minilm-l6-v2"
PROCESS = Path(__file__).with_name("setfit_process.py")


def setfit(python: Path) -> Arm:
    """Return the arm: a SetFit model for each question, with its defaults, by another `python`."""

    def answer(model: FewShotModel, trial: Trial) -> Answers:
        supports = [
            [(example.input, example.output) for example in of_question(question, trial.cases)]
            for question in trial.questions
        ]
        fitted = [support for support in supports if len({label for _, label in support}) > 1]
        found = fit_and_ask(python, fitted, trial.inputs, trial.seed)
        models = iter(found["supports"])
        columns: list[list[Answer]] = []
        for question, support in zip(trial.questions, supports, strict=True):
            if len(labels := {label for _, label in support}) > 1:
                own = next(models)
                classes, rows = own["classes"], np.array(own["probabilities"])
            else:
                classes, rows = list(labels), np.ones((len(trial.inputs), len(labels)))
            columns.append(from_classes(question, len(support), classes, rows))
        return Answers(by_input(columns), Cost(*found["learn"]), Cost(*found["answer"]))

    return answer


def fit_and_ask(
    python: Path, supports: Sequence[Sequence[tuple[str, str]]], inputs: Sequence[str], seed: int
) -> dict[str, Any]:
    """Fit a model for each support by another `python`, and return the answer of its process.

    See `setfit_process.py`. Raises `SystemExit` where it fails.
    """
    with tempfile.TemporaryDirectory() as scratch:
        request = {
            "encoder": str(fetch_sentence_encoder(ENCODER)),
            "seed": seed,
            "threads": torch.get_num_threads(),
            "scratch": scratch,
            "inputs": list(inputs),
            "supports": supports,
        }
        command = [str(python), "-P", str(PROCESS)]
        done = subprocess.run(command, input=json.dumps(request), capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"SetFit's process ended with {done.returncode}: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found
