"""The worked app of the documentation, on a tiny random model behind a server that listens."""

from __future__ import annotations

import importlib.util
import itertools
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM

from abmll_client import Client, models
from service.executors.build import load_model_worker
from service.schemas import demo
from service.settings import Settings
from tests.e2e.tickets import TICKETS
from tests.service.conftest import Server
from tests.tiny import CONFIGS, tiny_tokenizer

SCRIPT = Path(__file__).resolve().parents[2] / "docs/examples/ticket_triage.py"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    """Return the script as a module."""
    spec = importlib.util.spec_from_file_location("ticket_triage", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Yield the address of a server of the tiny model."""
    root = tmp_path_factory.mktemp("triage")
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(CONFIGS["llama"](), dtype=torch.bfloat16).save_pretrained(root / "base")
    tiny_tokenizer().save_pretrained(root / "base")
    settings = Settings(
        model=str(root / "base"), posterior="untrained", quantisation="none", cache_dir=root / "cache"
    )
    worker = SimpleNamespace(load=partial(load_model_worker, settings))
    with Server(root / "data", worker).listening() as running:
        yield running.url


@pytest.fixture(scope="module")
def predictions(url: str) -> list[models.Prediction]:
    """Return the server's prediction for each ticket."""
    with Client(url) as client:
        texts = [text for text, _ in TICKETS]
        return client.predict(texts, support=demo.SUPPORT, options=demo.OPTIONS, samples=2).predictions


@pytest.fixture(scope="module")
def threshold(predictions: list[models.Prediction]) -> float:
    """Return the middle of the widest gap among confidences, so that rounding decides nothing."""
    middle = sorted(prediction.confidence for prediction in predictions)[12:38]
    low, high = max(itertools.pairwise(middle), key=lambda pair: pair[1] - pair[0])
    return (low + high) / 2


def test_every_ticket_goes_where_its_confidence_and_the_rule_send_it(
    example: ModuleType, url: str, predictions: list[models.Prediction], threshold: float
) -> None:
    with Client(url) as client:
        results, statistics = example.triage(client, TICKETS, min_confidence=threshold, samples=2)
    right = 0
    for result, prediction, (text, label) in zip(results, predictions, TICKETS, strict=True):
        if prediction.confidence >= threshold:
            assert (result.source, result.answer) == ("model", prediction.answer)
            right += prediction.answer == label
        else:
            by_rule = example.by_keyword(text)
            assert (result.source, result.answer) == ("fallback" if by_rule else "human", by_rule)
    counts = Counter(result.source for result in results)
    assert set(counts) == {"model", "fallback", "human"}
    assert (statistics.accepted, statistics.fallen_back, statistics.queued) == tuple(
        counts[source] for source in ("model", "fallback", "human")
    )
    assert (statistics.labelled, statistics.correct) == (counts["model"], right)


def test_costs_count_whoever_was_asked(example: ModuleType) -> None:
    statistics = example.GateStatistics(seen=10, accepted=5, fallen_back=3, queued=2)
    assert example.Costs(1, 10, 100).of(statistics) == {"model": 10, "fallback": 50, "human": 200}


def test_the_command_prints_its_table(url: str, threshold: float, tmp_path: Path) -> None:
    tickets = tmp_path / "tickets.jsonl"
    tickets.write_text(
        "".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in TICKETS[:12])
    )
    command = [sys.executable, str(SCRIPT), "--url", url, "--tickets", str(tickets)]
    command += ["--min-confidence", str(threshold), "--samples", "2"]
    printed = subprocess.run(command, check=True, capture_output=True, text=True, timeout=240).stdout
    counts = {source: int(n) for source, n in re.findall(r"│ (model|fallback|human) +│ +(\d+) ", printed)}
    assert sum(counts.values()) == 12
    lines = Counter(
        line.split()[0] for line in printed.splitlines() if line.startswith(("model", "fallback", "human"))
    )
    assert counts == {source: lines[source] for source in counts}
    assert re.search(r"right among the accepted +│ +\d+ of \d+", printed) or counts["model"] == 0
