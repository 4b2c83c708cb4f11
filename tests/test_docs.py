"""What the documentation shows is what the code accepts."""

import json
import re
from pathlib import Path
from typing import get_args

import pytest
import torch
import yaml
from pydantic import TypeAdapter

from abmll.prediction.semantic import Candidate, NormalisedMatch, read_answers
from lab.evaluation.configuration import AnyMethod, EvaluationConfig
from lab.training.configuration import TrainingConfig
from model_store.posteriors import shipped_posteriors
from service import schemas
from service.api.native.rendering import text_report

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text("utf-8")


def test_the_readmes_request_is_a_request() -> None:
    (body,) = re.findall(r"/v1/predict .*? -d '(\{.*?\})'\n", README, re.DOTALL)
    request = schemas.PredictRequest.model_validate_json(body)
    assert len(request.support or []) == 16
    assert request.gate.min_confidence == 0.5


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 120


def test_the_request_of_the_page_on_streaming_is_one_for_a_stream() -> None:
    page = (ROOT / "docs/streaming.md").read_text("utf-8")
    (body,) = re.findall(r"/v1/predict .*? -d '(\{.*?\})'\n", page, re.DOTALL)
    assert schemas.PredictRequest.model_validate_json(body).stream


NO_RUNS = ("evaluate", "instructions")
RUNS = sorted(path for path in (ROOT / "configs").rglob("*.yaml") if path.parent.name not in NO_RUNS)


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_every_configuration_parses(path: Path) -> None:
    assert TrainingConfig.read(path).id


@pytest.mark.parametrize(
    "path", sorted((ROOT / "configs/evaluate").glob("*.yaml")), ids=lambda path: path.stem
)
def test_every_study_parses_and_says_where_its_posteriors_come_from(path: Path) -> None:
    study = EvaluationConfig.read(path)
    trained = {f"runs/{TrainingConfig.read(config).id}/posterior" for config in RUNS}
    named = {entry.posterior for entry in study.methods if entry.posterior}
    assert named <= trained | set(shipped_posteriors())


def test_the_page_on_evaluation_names_every_kind_of_method_and_no_other() -> None:
    page = (ROOT / "docs/evaluation.md").read_text("utf-8")
    kinds = {method.kind for method in get_args(get_args(AnyMethod)[0])}
    assert set(re.findall(r"`kind: (\w+)", page)) == kinds


def test_the_configuration_in_the_documentation_parses() -> None:
    page = (ROOT / "docs/meta-training.md").read_text("utf-8")
    (block,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    config = TypeAdapter(TrainingConfig).validate_python(yaml.safe_load(block))
    assert config.meta.inner.steps == 5
    row = next(line for line in page.splitlines() if line.startswith('    {"task"'))
    assert set(json.loads(row)) == {"task", "input", "output", "options"}


def test_links_lead_somewhere() -> None:
    tops = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SKILL.md")]
    for page in [*tops, *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text("utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_command_that_is_shown_exists() -> None:
    from typer.main import get_command

    from service.cli.main import app

    known = set(get_command(app).commands)  # type: ignore[attr-defined]
    pages = README + (ROOT / "docs/command-line.md").read_text("utf-8")
    shown = re.findall(r"(?:^|bin/)abmll ([a-z][a-z-]+)\b", pages, re.MULTILINE)
    assert len(shown) >= 11
    assert set(shown) <= known


def test_the_worked_example_of_free_text_is_what_comes_out() -> None:
    page = (ROOT / "docs/free-text.md").read_text("utf-8")
    header, _, *rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in page.splitlines()
        if line.startswith("|")
    ]
    scores = torch.tensor([[float(cell) for cell in row[1:]] for row in rows], dtype=torch.float64).log()
    candidates = [Candidate(text, len(text.split()) + 1, complete=True) for text in header[1:]]
    predictive, text = read_answers("", candidates, scores, NormalisedMatch(), samples=4, paired=True)
    (block,) = re.findall(r"```json\n(.*?)```", page, re.DOTALL)
    shown = json.loads(block)
    found = text_report(text).model_dump()
    assert list(shown) == list(found)
    assert shown.pop("clusters") == [
        {name: value if name in {"answer", "members"} else pytest.approx(value, abs=1e-4)
         for name, value in cluster.items()}
        for cluster in found.pop("clusters")
    ]  # fmt: skip
    assert shown == pytest.approx(found, abs=1e-4)
    assert f"= {predictive.confidence:.2f}, the confidence" in page
