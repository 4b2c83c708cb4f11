"""Files of cases: answers in an object, or in a column for each question."""

from __future__ import annotations

from pathlib import Path

import pytest

from abmll.errors import AbmllError
from abmll.text.files import cases_by_line
from abmll.text.questions import Question, TypedQuestion

URGENT = TypedQuestion(Question("urgent", "predicate", "Is it urgent?", ("yes", "no")), (True, False))
TEAM = TypedQuestion(
    Question("team", "choice", "Which team?", ("it", "true", "true (boolean)")), ("it", "true", True)
)
ANGER = TypedQuestion(Question("anger", "score", "How angry?", ("calm", "cross")), (0, 1))
OWN = TypedQuestion(Question("own", "choice", "?", ("x", "cannot tell"), (), False), ("x", "cannot tell"))
QUESTIONS = (URGENT, TEAM, ANGER)


def read(path: Path, text: str, questions: tuple[TypedQuestion, ...] = QUESTIONS) -> list[object]:
    path.write_text(text)
    return [(text, dict(answers)) for _, text, answers in cases_by_line(path, questions)]


def test_json_lines_have_answers_as_requests_have_them(tmp_path: Path) -> None:
    text = '{"input": "a", "answers": {"urgent": true, "team": null, "anger": 1}}\n{"input": "b", "answers": {"x": 0.5}}\n'
    found = read(tmp_path / "x.jsonl", text)
    assert found == [("a", {"urgent": True, "team": None, "anger": 1}), ("b", {"x": 0.5})]
    assert [place for place, *_ in cases_by_line(tmp_path / "x.jsonl", ())] == [
        "x.jsonl line 1",
        "x.jsonl line 2",
    ]


@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_a_table_has_a_column_for_each_question(tmp_path: Path, suffix: str) -> None:
    table = "input,urgent,note,team,anger\na,TRUE,x,it,cross\nb,,y,true, 1\nc,cannot tell,,sales,\n"
    text = table.replace(",", "\t") if suffix == "tsv" else table
    assert read(tmp_path / f"x.{suffix}", text) == [
        ("a", {"urgent": True, "team": "it", "anger": "cross"}),
        ("b", {"team": "true", "anger": 1}),
        ("c", {"urgent": None, "team": "sales"}),
    ]


def test_an_option_of_these_words_is_an_answer(tmp_path: Path) -> None:
    assert read(tmp_path / "x.csv", "input,own\na,cannot tell\n", (OWN,)) == [("a", {"own": "cannot tell"})]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.jsonl", '{"input": "a"}\n', "x.jsonl line 1: `answers` is an object by question"),
        ("x.jsonl", '{"input": "a", "answers": ["x"]}\n', "x.jsonl line 1: `answers` is an object by question"),
        ("x.jsonl", '{"answers": {"urgent": true}}\n', "x.jsonl line 1 has no field `input`"),
        ("x.csv", "input,urgent\na,true\nb,\n", "x.csv line 3 answers no question: the columns of answers are 'urgent'"),
        ("x.csv", "text,urgent\na,true\n", "has no column `input`"),
        ("x.json", "[]", "expected .jsonl"),
    ],
)  # fmt: skip
def test_what_is_no_case_is_named_with_its_line(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(AbmllError) as refused:
        read(tmp_path / name, text)
    assert message in str(refused.value)
