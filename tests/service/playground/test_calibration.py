"""Calibrating at the page: labels in, a promise out, and answers that are given or held back by it."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from urllib.parse import urlparse
from urllib.request import urlopen

import pytest

from tests.service.conftest import Listening
from tests.service.playground.test_journey import answer, bring, button, learn, saved
from tests.service.playground.test_versions import adapter_of

pytestmark = pytest.mark.browser

COUNT = 40
# Labels as a model would deserve that is right where it is sure, and wrong in the other cases.
LABEL = """async () => {
    const { get, set } = await import("/playground/store.js");
    const surest = get().inputs.map(({ decided }) => decided.team.confidence).sort((a, b) => b - a);
    const label = ({ options, top, confidence }) => options[confidence >= surest[23] ? top : (top + 1) % 3];
    set((now) => ({ inputs: now.inputs.map((row) => ({ ...row, answers: { team: label(row.decided.team) } })) }));
}"""


def inputs(count: int = COUNT) -> str:
    return "input\n" + "".join(f"row {n}\n" for n in range(count))


def gate(page):
    return page.get_by_role("region", name="Gate")


def line_of(page, question: str):
    lines = page.get_by_role("list", name="Certificates").get_by_role("listitem")
    return lines.filter(has_text=question).first


def target(page, value: str) -> None:
    page.get_by_label("Target error of a certificate").select_option(value)


def calibrated(page, labels: int) -> None:
    """Press the button, and wait until the server has counted the labels."""
    button(page, f"with {labels} label").click()
    page.get_by_text(f"is calibrated with {labels} label").wait_for()


@pytest.fixture
def labelled(open_page):
    """Return a page with a version, and inputs that it answered and a person labelled."""
    page = open_page()
    learn(page, 12)
    bring(page, "Inputs", inputs())
    answer(page, COUNT)
    page.evaluate(LABEL)
    target(page, "0.2")
    return page


def sent_to(page, ending: str) -> list[dict]:
    found: list[dict] = []
    page.on(
        "request",
        lambda r: found.append(r.post_data_json) if urlparse(r.url).path.endswith(ending) and r.post_data else None,
    )  # fmt: skip
    return found


def test_labels_become_a_promise_and_the_server_decides_by_it(labelled, listening: Listening) -> None:
    page = labelled
    sent = sent_to(page, "/calibrate")
    button(page, f"with {COUNT} labels").press("Enter")
    page.get_by_text(f"is calibrated with {COUNT} labels").wait_for()
    assert [(body["question"], len(body["cases"]), body["more_follow"]) for body in sent] == [
        ("team", 32, True),
        ("team", COUNT - 32, False),
    ]
    # The sentence has the numbers of the server's certificate.
    with urlopen(f"{listening.url}/v1/adapters/{adapter_of(page, listening)}/calibration") as response:
        (found,) = json.load(response)["questions"]
    (certificate,) = [one for one in found["certificates"] if one["target_error"] == 0.2]
    line = line_of(page, "team")
    assert line.inner_text() == (
        "certified team: at most 20 % of the answers that mails@1 gives are wrong. That holds with "
        f"probability 90 %, for inputs that come as the {COUNT} labelled ones came. It gives those from "
        f"confidence {certificate['threshold']:.2f} on, {certificate['accepted']} of the {COUNT} "
        f"({round(100 * certificate['coverage'])} %), {certificate['errors']} of them wrong; the others abstain."
    )
    assert 0 < certificate["accepted"] < COUNT
    gate(page).get_by_text(
        "Certificates decide about team. The slider decides about urgent, anger"
    ).wait_for()

    # New inputs are asked with the gate, and the page shows what the server decided.
    asked = sent_to(page, "/v1/decisions")
    decided: list[dict] = []
    page.on("response", lambda r: decided.append(r.json()) if r.url.endswith("/v1/decisions") else None)
    page.get_by_label("New inputs, one a line").fill("\n".join(f"new {n}" for n in range(12)))
    page.get_by_role("button", name="Add", exact=True).click()
    answer(page, 12)
    assert {(len(body["questions"]), tuple(body["abmll"]["gate"])) for body in asked} == {
        (1, ("target_error", "delta")),
        (2, ("min_confidence",)),
    }
    rows = [row for row in saved(page) if row["input"].startswith("new")]
    by_server = sorted(
        (round(one["confidence"], 5), one["abmll"]["decision"])
        for body in decided
        for one in body["answers"]
        if one["name"] == "team"
    )
    assert (
        sorted((round(float(row["team.confidence"]), 5), row["team.decision"]) for row in rows) == by_server
    )
    assert {decision for _, decision in by_server} == {"answer", "abstain"}
    (reason,) = {row["team.reason"].partition(",")[2] for row in rows if row["team.reason"]}
    assert reason == " from which on at most 20 % are certified to be wrong"
    abstains = next(row["input"] for row in rows if row["team.decision"] == "abstain")
    page.get_by_role("table", name="Inputs and answers").get_by_text(abstains, exact=True).click()
    page.get_by_text(re.compile(r"Abstains: confidence .* certified to be wrong\.")).wait_for()

    # The slider moves the questions without a certificate only, until the box is unticked.
    def given() -> list[str]:
        return [row["team.decision"] for row in saved(page)]

    before = given()
    page.get_by_label("Least confidence").fill("1")
    assert given() == before
    page.get_by_label("Answer by the certificates").uncheck()
    assert set(given()) == {"abstain"}
    page.reload()
    line.wait_for()
    assert not page.get_by_label("Answer by the certificates").is_checked()


def test_a_pasted_table_is_calibrated_with_and_later_labels_are_added(
    open_page, listening: Listening
) -> None:
    page = open_page()
    learn(page, 12)
    button(page, "Remove all").last.click()
    button(page, "Paste labelled inputs").click()
    page.get_by_label("Rows", exact=True).fill("input,kind\na,b\n")
    page.get_by_text("No column has the name of a question").wait_for()
    sheet = "input,urgent\n" + "".join(f"text {n},{['no', 'yes', '?'][n % 3]}\n" for n in range(34))
    page.get_by_label("Rows", exact=True).fill(sheet)
    button(page, "Take 34 rows").click()
    sent = sent_to(page, "/calibrate")
    calibrated(page, 34)
    assert [(len(body["cases"]), body["replace"], body["more_follow"]) for body in sent] == [
        (32, False, True),
        (2, False, False),
    ]
    assert [case["answers"]["urgent"] for case in sent[0]["cases"][:3]] == [False, True, None]
    assert re.search(r"^urgent: none.* 34 label", line_of(page, "urgent").inner_text())

    # A label that changed after it counted is said to be the first one still.
    page.get_by_role("table", name="Inputs and answers").get_by_text("text 1", exact=True).click()
    page.get_by_label("Right answer to urgent").select_option("no")
    page.get_by_label("Right answer to anger").select_option("calm")
    gate(page).get_by_text("1 label changed after it counted: the first one stays").wait_for()
    sent.clear()
    calibrated(page, 1)
    assert [(body["question"], body["cases"]) for body in sent] == [
        ("anger", [{"input": "text 1", "answers": {"anger": "calm"}}])
    ]
    sent.clear()
    page.get_by_label("Begin anew").check()
    gate(page).get_by_text("makes it worthless").wait_for()
    calibrated(page, 35)
    assert [(body["question"], body["replace"]) for body in sent] == [
        ("urgent", True), ("urgent", False), ("anger", True)
    ]  # fmt: skip
    assert not page.get_by_label("Begin anew").is_checked()
    gate(page).get_by_text("changed after").wait_for(state="hidden")


def test_labels_that_another_page_sent_count_once(labelled) -> None:
    page = labelled
    calibrated(page, COUNT)
    text = line_of(page, "team").inner_text()
    page.evaluate(
        """async () => (await import("/playground/store.js")).set((now) => ({
            calibration: null, inputs: now.inputs.slice(0, 20).map(({ counted, ...row }) => row) }))"""
    )
    calibrated(page, 20)
    assert line_of(page, "team").inner_text() == text


def test_what_does_not_hold_any_more_is_said(labelled) -> None:
    page = labelled
    calibrated(page, COUNT)
    page.get_by_label("Samples").fill("8")
    page.get_by_label("Samples").blur()
    gate(page).get_by_text("calibrated with 16 samples, and answers have 8 now").wait_for()
    assert gate(page).get_by_text("certified", exact=True).count() == 0
    page.get_by_label("Samples").fill("16")
    page.get_by_label("Samples").blur()
    gate(page).get_by_text("certified", exact=True).wait_for()
    page.get_by_label("What team asks").fill("Which team is it for?")
    gate(page).get_by_text("“team” is another question than the one that was calibrated").wait_for()
    page.get_by_label("What team asks").fill("Which team answers this mail?")
    gate(page).get_by_text("certified", exact=True).wait_for()
    page.get_by_label("Learn from the first cases").fill("8")
    learn(page, 8)
    gate(page).get_by_text("The calibrated gate is that of mails@1. It says nothing about mails@2").wait_for()
    calibrated(page, COUNT)
    gate(page).get_by_text("The calibrated gate is that of").wait_for(state="hidden")


def test_errors_of_calibrating_are_words_beside_the_button(open_page, listening: Listening) -> None:
    page = open_page()
    gate(page).get_by_text("A version that learned from cases can be calibrated").wait_for()
    learn(page, 12)
    bring(page, "Inputs", "input\none\ntwo\n")
    alert = gate(page).get_by_role("alert")
    button(page, "with 0 labels").click()
    alert.get_by_text("No input has a right answer that could count").wait_for()
    bring(page, "Inputs", "input,team\none,billing\n" + "long " * 80 + ",billing\nthree,billng\n")
    button(page, "with 2 labels").click()
    alert.get_by_text("Row 3: “billng” is no answer to “team”").wait_for()
    alert.get_by_role("button", name="Show it").click()
    page.get_by_label("Right answer to team").select_option("delivery")
    button(page, "with 3 labels").click()
    alert.get_by_text(re.compile("^Row 2: .*256")).wait_for()  # the fake model reads 256 characters
    page.route("**/calibrate", lambda route: route.abort())
    button(page, "with 3 labels").click()
    alert.get_by_text("The server cannot be reached").wait_for()


def test_stop_ends_it_and_the_rest_is_sent_later(labelled) -> None:
    page = labelled
    held = []
    page.route("**/calibrate", lambda route: held.append(route) if len(held) < 1 else route.fallback())
    button(page, f"with {COUNT} labels").click()
    page.get_by_role("progressbar", name="Calibrating").wait_for()
    button(page, "Stop").click()
    page.get_by_text("Stopped. Labels that arrived count.").wait_for()
    page.unroute("**/calibrate")
    calibrated(page, COUNT)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everyone_can_read_it(labelled, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = labelled
    page.emulate_media(color_scheme=scheme)
    calibrated(page, COUNT)
    page.get_by_label("Begin anew").check()
    page.get_by_label("Samples").fill("8")
    page.get_by_label("Samples").blur()
    found = axe.run(page).response["violations"]
    assert [one["id"] for one in found if one["impact"] in {"serious", "critical"}] == []
    page.set_viewport_size({"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    # Headings go down one at a time.
    levels = page.evaluate("[...document.querySelectorAll('h1,h2,h3,h4')].map((h) => Number(h.tagName[1]))")
    assert all(below - above <= 1 for above, below in pairwise(levels))
