"""The embedded server, on a real, tiny, random model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from abmll_client.sklearn import FewShotClassifier
from model_store.errors import StoreError
from service import embedded
from service.cli import main as cli
from tests.tiny import CONFIGS, tiny_tokenizer

X = ["great film", "dull story", "great actors", "a dull film"]
Y = ["good", "bad", "good", "bad"]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return settings for a tiny Llama in a folder, without a posterior."""
    root = tmp_path_factory.mktemp("embedded")
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(CONFIGS["llama"](), dtype=torch.bfloat16).save_pretrained(root / "base")
    tiny_tokenizer().save_pretrained(root / "base")
    return {
        "model": str(root / "base"),
        "posterior": "untrained",
        "quantisation": "none",
        "cache_dir": root / "cache",
    }


@pytest.fixture(autouse=True)
def stopped() -> Iterator[None]:
    yield
    embedded.stop()


def test_a_classifier_answers_as_the_command_line_does(settings: dict[str, Any], tmp_path: Path) -> None:
    embedded.start(**settings)
    fitted = FewShotClassifier(samples=4, steps=2).fit(X, Y)
    probabilities = fitted.predict_proba(X)
    embedded.stop()
    rows = "".join(f"{x},{y},bad|good\n" for x, y in zip(X, Y, strict=True))
    (tmp_path / "support.csv").write_text("input,output,options\n" + rows)
    (tmp_path / "inputs.csv").write_text("input\n" + "".join(f"{x}\n" for x in X))
    options = [
        part for name, value in settings.items() for part in (f"--{name.replace('_', '-')}", str(value))
    ]
    command = ["predict", str(tmp_path / "inputs.csv"), "--support", str(tmp_path / "support.csv"), "--json",
               "--samples", "4", "--steps", "2", "--data-dir", str(tmp_path / "data"), *options]  # fmt: skip
    shown = CliRunner().invoke(cli.app, command)
    assert shown.exit_code == 0, shown.output
    answer = json.loads(shown.stdout.splitlines()[-1])
    assert answer["adapter_id"] == fitted.adapter_id_
    rows = [[row["probability"] for row in p["distribution"]] for p in answer["predictions"]]
    np.testing.assert_allclose(probabilities, rows, atol=1e-5)


def test_one_engine_is_shared_and_its_files_go_with_it(settings: dict[str, Any]) -> None:
    engine = embedded.start(**settings)
    assert embedded.shared() is engine
    with pytest.raises(RuntimeError, match="runs already"):
        embedded.start(**settings)
    first = FewShotClassifier(samples=0, steps=1).fit(X, Y)
    with engine.client() as client:
        assert (
            client.create_adapter(first.support_, options=["bad", "good"], adapt={"steps": 1}).cache == "hit"
        )
    folder = Path(embedded._shared.folder.name)
    assert any(folder.rglob("*.safetensors"))
    embedded.stop()
    embedded.stop()
    assert not folder.exists()
    embedded.start(**settings)  # its store is empty, so the adapter is made again
    np.testing.assert_allclose(first.predict_proba(X).sum(axis=1), 1)


def test_a_model_that_cannot_be_loaded_is_reported_and_leaves_nothing_running(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no base model"):
        embedded.start(model="no/such model", posterior="untrained", cache_dir=tmp_path)
    assert embedded._shared.running is None


def test_the_engine_starts_by_itself_and_does_not_keep_the_program_alive(settings: dict[str, Any]) -> None:
    code = (
        "from abmll_client.sklearn import FewShotClassifier\n"
        f"print(FewShotClassifier(samples=0, steps=1).fit({X!r}, {Y!r}).predict_proba({X!r}).shape)"
    )
    environment = {f"ABMLL_{name.upper()}": str(value) for name, value in settings.items()}
    printed = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, **environment},
    )
    assert printed.stdout.strip() == "(4, 2)"


def test_without_the_client_the_message_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['abmll_client'] = None\n"
        "try: import service.embedded\n"
        "except ImportError as error: print(error)"
    )
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert printed.strip() == "service.embedded needs the client: install the distribution abmll-client"
