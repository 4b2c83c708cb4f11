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
    folder = embedded._shared.folder
    assert folder is not None
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


FIT = f"""
import os, sys, threading
from abmll_client.sklearn import FewShotClassifier
fit = lambda: FewShotClassifier(samples=0, steps=1).fit({X!r}, {Y!r})
"""
ENDS = {
    "of itself": "print(fit().predict_proba(['x']).shape)",
    "with a status": "print(fit().predict_proba(['x']).shape); sys.exit(3)",
}


def run_program(code: str, settings: dict[str, Any], temporary: Path) -> subprocess.CompletedProcess[str]:
    """Run a program whose engine has `settings`, with `temporary` for its temporary files."""
    own = {f"ABMLL_{name.upper()}": str(value) for name, value in settings.items()}
    return subprocess.run(
        [sys.executable, "-c", FIT + code],
        check=False,
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, **own, "TMPDIR": str(temporary)},
    )


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_a_program_ends_in_silence_and_leaves_no_files(
    settings: dict[str, Any], tmp_path: Path, end: str
) -> None:
    ended = run_program(end, settings, tmp_path)
    assert (ended.stdout.strip(), ended.stderr) == ("(1, 2)", "")
    assert ended.returncode == (3 if "sys.exit" in end else 0)
    assert not list(tmp_path.glob("abmll-*"))


FORK = """
from service import embedded
if BEFORE:
    fitted = fit()
child = os.fork()
if not child:
    for work in (lambda: fitted.predict_proba(['x']), fit, embedded.start):
        try:
            print("child", type(work()).__name__)
        except RuntimeError as error:
            print("child", "forked" in str(error) and "spawn" in str(error))
        if not BEFORE:
            break
    sys.stdout.flush()
    sys.exit()
os.waitpid(child, 0)
print("parent", fit().predict_proba(['x']).shape, embedded._shared.folder.is_dir())
"""


def test_a_forked_process_says_that_the_engine_is_not_in_it(settings: dict[str, Any], tmp_path: Path) -> None:
    """It hung before: the threads of the engine are not in it. The engine goes on where it is."""
    ended = run_program(f"BEFORE = True\n{FORK}", settings, tmp_path)
    assert ended.stdout.splitlines() == ["child True"] * 3 + ["parent (1, 2) True"]
    assert ended.stderr == ""
    assert not list(tmp_path.glob("abmll-*"))


def test_a_process_that_was_forked_before_has_an_engine_of_its_own(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    program = FORK.replace("lambda: fitted.predict_proba(['x'])", "fit")
    ended = run_program(f"BEFORE = False\n{program}", settings, tmp_path)
    assert ended.stdout.splitlines() == ["child FewShotClassifier", "parent (1, 2) True"]
    assert ended.stderr == ""
    assert not list(tmp_path.glob("abmll-*"))


def test_without_the_client_the_message_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['abmll_client'] = None\n"
        "try: import service.embedded\n"
        "except ImportError as error: print(error)"
    )
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert printed.strip() == "service.embedded needs the client: install the distribution abmll-client"
