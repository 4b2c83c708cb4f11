"""Fit and ask SetFit, in a process of its own with libraries of its own.

    SETFIT-VENV/bin/python -P benchmarks/decisions/setfit_process.py < request.json > answer.json

It imports nothing of this repository: `-P` keeps the files beside it out of its imports. The
request has `encoder` (a folder of MiniLM), `seed`, `threads`, `scratch` (a folder), `inputs`, and
`supports`, each a list of pairs of a text and a label, with two labels or more. The answer has, for
each support, its `classes` and their `probabilities` by input, and `learn` and `answer`: seconds by
the clock and of the processor, over all supports.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, models  # type: ignore[import-not-found]
from setfit import SetFitModel, Trainer, TrainingArguments  # type: ignore[import-not-found]
from sklearn.linear_model import LogisticRegression


def main() -> None:
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # progress of the libraries is not part of the answer
    request = json.load(sys.stdin)
    torch.set_num_threads(request["threads"])
    found: dict[str, Any] = {"supports": [], "learn": [0.0, 0.0], "answer": [0.0, 0.0]}
    for support in request["supports"]:
        started = time.perf_counter(), time.process_time()
        # As the published all-MiniLM-L6-v2: mean of the last layer, normalised.
        words = models.Transformer(request["encoder"], max_seq_length=256)
        parts = [words, models.Pooling(words.get_word_embedding_dimension()), models.Normalize()]
        body = SentenceTransformer(modules=parts, device="cpu")
        model = SetFitModel(model_body=body, model_head=LogisticRegression())
        data = Dataset.from_dict({"text": [text for text, _ in support], "label": [y for _, y in support]})
        arguments = TrainingArguments(
            output_dir=request["scratch"],
            seed=request["seed"],
            report_to="none",
            save_strategy="no",
            show_progress_bar=False,
        )
        Trainer(model=model, args=arguments, train_dataset=data).train()
        _add(found["learn"], started)
        started = time.perf_counter(), time.process_time()
        rows = model.predict_proba(request["inputs"], as_numpy=True).tolist()
        _add(found["answer"], started)
        found["supports"].append({"classes": list(model.model_head.classes_), "probabilities": rows})
    json.dump(found, out)


def _add(total: list[float], started: tuple[float, float]) -> None:
    total[0] += time.perf_counter() - started[0]
    total[1] += time.process_time() - started[1]


if __name__ == "__main__":
    main()
