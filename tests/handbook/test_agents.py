"""What agents and citing readers get: SKILL.md, CITATION.cff."""

from __future__ import annotations

import re
import tomllib

import yaml

from handbook.http_pages import document
from handbook.overview import ROOT
from handbook.pages import DOCS
from service.errors import ServiceError

SKILL = (ROOT / "SKILL.md").read_text("utf-8")


def test_the_skill_names_paths_and_codes_that_there_are() -> None:
    _, head, body = SKILL.split("---", 2)
    assert set(yaml.safe_load(head)) == {"name", "description"}
    paths = set(document()["paths"])
    named = {path.replace("{id}", "{adapter_id}") for path in re.findall(r"`(?:GET|POST) (/[\w/{}]+)`", body)}
    assert len(named) == 5
    assert named <= paths

    def codes(error: type[ServiceError]) -> set[str]:
        return {error.code}.union(*map(codes, error.__subclasses__()))

    assert set(re.findall(r"4\d\d `(\w+)`", body)) <= codes(ServiceError)
    for page in re.findall(r"`(docs/[\w./-]+)`", body):
        assert (ROOT / page).exists(), page


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert citation["version"] == project["version"]
    assert citation["license"] == project["license"]
    method = " ".join((ROOT / "docs/method.md").read_text("utf-8").split())
    assert citation["preferred-citation"]["identifiers"][0]["value"] in method.replace("arXiv ", "arXiv:")


def test_the_model_card_repeats_the_figures_of_the_evaluation() -> None:
    """Each row of the card is in the evaluation's table of what ships."""
    card, page = ((DOCS / name).read_text("utf-8") for name in ("model-card.md", "evaluation.md"))
    cells = r"([.\d]+) \| ([.\d]+) \| ([.\d]+)"
    rows = re.findall(rf"^\| `\w+`, \d+ tasks \| {cells} \|", card, re.MULTILINE)
    (ours,) = re.findall(r"^\| what ships, 16 samples \| (.*) \|$", page, re.MULTILINE)
    assert [", ".join(row) for row in rows] == [cell.rpartition(", ")[0] for cell in ours.split(" | ")]
