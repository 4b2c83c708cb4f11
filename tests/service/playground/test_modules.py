"""The page's pure modules, run in the browser: files, columns, questions, the gate."""

from __future__ import annotations

import csv
import io
import random
from typing import Any

import pytest

from abmll.assurance.certificates import Certificate, certify_looks

pytestmark = pytest.mark.browser


@pytest.fixture
def call(open_page):
    """Return a function that calls a function of a module with JSON arguments."""
    page = open_page()

    def call(module: str, name: str, *arguments: Any) -> Any:
        script = """async ([module, name, given]) => {
            const loaded = await import(`/playground/${module}.js`);
            try { return loaded[name](...given); } catch (error) { return { thrown: error.message }; }
        }"""
        return page.evaluate(script, [module, name, list(arguments)])

    return call


def question(id: str, name: str, kind: str, instructions: str, **options: str) -> dict[str, Any]:
    given = [{"value": value, "description": text} for value, text in options.items()]
    return {"id": id, "name": name, "kind": kind, "instructions": instructions, "options": given}


QUESTIONS = [
    question("t", "team", "choice", "Which?", billing="Money.", delivery=""),
    question("u", "urgent", "predicate", "Urgent?"),
    question("a", "anger", "score", "How angry?", calm="", furious=""),
]
TABLES = [
    'a,b\r\n"x, ""y""\nz",2\r\n\r\n,3',
    "a;b;c\n1,5;2;3",
    "a\tb\n5\" pipe\t\"two\nlines\"",
    "one\ntwo",
    'a,"b"\n"",""\nx,y\n',
]  # fmt: skip


def test_delimited_texts_are_read_as_the_csv_library_reads_them(call) -> None:
    for text in TABLES[:1] + TABLES[3:]:
        expected = [row for row in csv.reader(io.StringIO(text, newline="")) if any(c.strip() for c in row)]
        assert call("files", "readDelimited", text) == expected
    assert call("files", "readDelimited", TABLES[1]) == [["a", "b", "c"], ["1,5", "2", "3"]]
    assert call("files", "readDelimited", TABLES[2]) == [["a", "b"], ['5" pipe', "two\nlines"]]
    assert "Line 2 has a quote" in call("files", "readDelimited", 'a,b\n"x,y')["thrown"]


def test_what_is_written_is_read_back_by_the_csv_library(call) -> None:
    rows = [["a", 'say "no"', "x,y"], ["", " space ", "two\nlines"], ["1.5", "null", "é\t☃"]]
    written = call("files", "writeCsv", rows)
    assert list(csv.reader(io.StringIO(written, newline=""))) == rows


def test_json_lines_and_lists_are_tables(call) -> None:
    lines = '{"input": "a", "answers": {"team": "billing", "urgent": true}}\n\n{"input": "b", "id": 7}'
    expected = {
        "header": ["input", "team", "urgent", "id"],
        "rows": [["a", "billing", True, None], ["b", None, None, 7]],
    }
    assert call("files", "readTable", lines) == expected
    assert call("files", "readTable", '[{"input": "a"}]') == {"header": ["input"], "rows": [["a"]]}
    assert call("files", "readTable", '{"a": 1}\n{"a"')["thrown"].startswith("Line 2 is not JSON")
    assert "object" in call("files", "readTable", "[1]")["thrown"]


def test_columns_become_inputs_answers_new_questions_or_are_kept(call) -> None:
    header = ["id", "Message", "TEAM", "urgent", "priority"]
    rows = [[str(n), f"text {n}", "Billing", "true", ["low", "high"][n % 2]] for n in range(4)]
    found = call("columns", "understand", {"header": header, "rows": rows}, QUESTIONS, {"grow": True})
    assert (found["input"], found["read"], found["kept"]) == (
        "Message",
        ["TEAM", "urgent", "priority"],
        ["id"],
    )
    (new,) = found["questions"]
    assert (new["kind"], [option["value"] for option in new["options"]]) == ("choice", ["high", "low"])
    assert found["rows"][0]["answers"] == {"t": "billing", "u": "yes", new["id"]: "low"}
    kept = call("columns", "understand", {"header": header, "rows": rows}, QUESTIONS, {"grow": False})
    assert kept["kept"] == ["id", "priority"]
    assert kept["rows"][1]["kept"] == {"id": "1", "priority": "high"}


def test_a_paste_without_a_header_has_the_input_and_then_the_questions(call) -> None:
    table = {"header": None, "rows": [["hello", "delivery", "no", "1"], ["bye", "?", "", "calm"]]}
    found = call("columns", "understand", table, QUESTIONS, {"grow": True})
    assert [row["answers"] for row in found["rows"]] == [
        {"t": "delivery", "u": "no", "a": "furious"},
        {"t": None, "a": "calm"},
    ]


def test_answers_have_the_form_of_the_wire(call) -> None:
    rows = [
        {"id": "1", "input": "a", "answers": {"t": "billing", "u": "no", "a": None}},
        {"id": "2", "input": "b", "answers": {}},
    ]
    cases = call("questions", "wireCases", QUESTIONS, rows)["cases"]
    assert cases == [{"input": "a", "answers": {"team": "billing", "urgent": False, "anger": None}}]
    assert [call("questions", "wireQuestion", q) for q in QUESTIONS] == [
        {"type": "choice", "name": "team", "instructions": "Which?", "choices": [
            {"value": "billing", "description": "Money."}, {"value": "delivery"}]},
        {"type": "predicate", "name": "urgent", "instructions": "Urgent?"},
        {"type": "score", "name": "anger", "instructions": "How angry?", "levels": [
            {"label": "calm"}, {"label": "furious"}]},
    ]  # fmt: skip


def test_the_curve_is_that_of_the_labelled_answers(call) -> None:
    found = [
        {"confidence": 0.9, "right": True},
        {"confidence": 0.8, "right": False},
        {"confidence": 0.8, "right": True},
        {"confidence": 0.7},
        {"confidence": 0.5, "right": False},
    ]
    assert call("gate", "curve", found) == [
        {"confidence": 0.9, "coverage": 0.25, "error": 0},
        {"confidence": 0.8, "coverage": 0.75, "error": pytest.approx(1 / 3)},
        {"confidence": 0.5, "coverage": 1, "error": 0.5},
    ]
    assert call("gate", "summary", found, 0.7) == {
        "total": 5,
        "given": 4,
        "labelled": 4,
        "right": 2,
        "givenLabelled": 3,
        "wrong": 1,
    }


def test_cases_and_labels_that_say_nothing_draw_no_curve(call) -> None:
    decided = {"options": ["billing", "delivery"], "top": 0, "confidence": 0.9}
    inputs = [
        {"answers": {"t": "billing"}, "decided": {"t": decided}},
        {"answers": {"t": "delivery"}, "decided": {"t": decided}, "taught": True},
        {"answers": {"t": None}, "decided": {"t": decided}},
    ]
    assert call("gate", "outcomes", QUESTIONS[:1], inputs) == [
        {"confidence": 0.9, "right": True},
        {"confidence": 0.9, "right": None},
    ]


def test_a_certificate_is_that_of_the_library(call) -> None:
    draw = random.Random(5)
    seen = set()
    given, expected = [], []
    for _ in range(80):
        n, slope, digits = (
            draw.choice([1, 29, 45, 60, 200, 500]),
            draw.choice([0, 0.1, 0.6]),
            draw.choice([1, 3, 17]),
        )
        confidences = [round(draw.random(), digits) or 0.5 for _ in range(n)]
        correct = [draw.random() > 2 * slope * (1 - confidence) for confidence in confidences]
        target = draw.choice([0.02, 0.05, 0.1, 0.2])
        found = certify_looks(confidences, correct, target, 0.1, n)
        certified = isinstance(found, Certificate)
        seen.add(found.errors > 0 if certified else found.about_n_more_labels is None)
        names = ("threshold", "n", "accepted", "errors", "coverage")
        expected.append(
            {name: getattr(found, name) for name in names}
            if certified
            else {"more": found.about_n_more_labels}
        )
        rows = [{"confidence": c, "correct": k} for c, k in zip(confidences, correct, strict=True)]
        given.append([rows, target])
    assert [call("certificate", "certificate", *arguments) for arguments in given] == expected
    assert seen == {True, False}


def test_what_a_certificate_counts_is_what_calibrating_counts(call) -> None:
    decided = {"t": {"options": ["billing", "delivery"], "top": 0, "confidence": 0.9}}
    inputs = [
        {"input": "a", "answers": {"t": "billing"}, "decided": decided},
        {"input": "a", "answers": {"t": "delivery"}, "decided": decided},
        {"input": "b", "answers": {"t": None}, "decided": decided},
        {"input": "c", "answers": {}, "decided": decided},
        {"input": "d", "answers": {"t": "billing"}, "decided": decided, "taught": True},
        {"input": "e", "answers": {"t": "billing"}},
    ]
    assert call("certificate", "outcomesOf", QUESTIONS[0], inputs) == [
        {"confidence": 0.9, "correct": True},
        {"confidence": 0.9, "correct": False},
    ]


def test_a_suspicious_label_is_said_with_the_row_of_its_case(call) -> None:
    cases = [
        {"id": "x", "input": "", "answers": {"t": "billing"}},
        {"id": "y", "input": "one", "answers": {"u": "yes", "t": "billing"}},
        {"id": "z", "input": "two", "answers": {"t": "delivery"}},
    ]
    suspect = {"index": 2, "label": "delivery", "answer": "billing", "probability": 0.93}
    own = {"n": 2, "correct": 1, "low": 0.1, "high": 0.9}
    question = {
        "name": "team", "verdict": "weak", "held_out": own, "guess": {"accuracy": 0.5}, "suspects": [suspect],
        "reasons": [{"code": "c", "message": "too few"}], "conflicts": [], "unseen_options": ["other"],
    }  # fmt: skip
    state = {"questions": QUESTIONS, "cases": cases, "most": 0}
    found = call("check", "readDiagnosis", {"adapter_id": "a", "questions": [question]}, state)
    assert found["findings"] == [
        {
            "id": "z",
            "message": "Row 3, team: labelled “delivery”, but the other cases say “billing” (93 %). Is the label right?",
        },
        {"message": "team: no case has the answer “other”."},
    ]
    assert found["questions"][0]["right"] == (
        "Right for 1 of 2 held-out cases (10 % to 90 %); guessing is right for 50 %."
    )
