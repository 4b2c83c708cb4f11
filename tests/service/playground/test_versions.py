"""What the page shows of versions: steps while one is made, health, certificates, a comparison."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

from service.errors import InternalError
from tests.service.conftest import Listening, Server
from tests.service.engine.test_refining import SteppingWorker
from tests.service.fakes import FakeRun
from tests.service.playground.test_journey import answer, bring, button, learn

pytestmark = pytest.mark.browser

INPUTS = """async () => {
    const { inputs } = (await import("/playground/store.js")).get();
    return inputs.map(({ input, answers }) => ({ input, answers }));
}"""
# Labels as a model would deserve that is right where it is sure.
LABEL = """async () => {
    const { set } = await import("/playground/store.js");
    const label = ({ decided: { team: { options, top, confidence } } }, i) =>
        confidence > 0.36 || i % 7 ? options[top] : i % 2 ? null : options[(top + 1) % 3];
    set((now) => ({ inputs: now.inputs.map((row, i) => ({ ...row, answers: { team: label(row, i) } })) }));
}"""


@pytest.fixture
def worker() -> SteppingWorker:
    return SteppingWorker()


@pytest.fixture
def listening(tmp_path: Path, worker: SteppingWorker) -> Iterator[Listening]:
    with Server(tmp_path, worker).listening() as running:
        yield running


def post(url: str, body: object) -> dict:
    sent = Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    with urlopen(sent) as response:  # the address of this test's server
        return dict(json.load(response))


def adapter_of(page, listening: Listening) -> str:
    with urlopen(f"{listening.url}/v1/names/mails") as response:
        return str(json.load(response)["current"]["adapter_id"])


def test_each_step_is_shown_stop_ends_it_and_an_error_is_said(
    open_page, worker: SteppingWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses: list[float] = []
    monkeypatch.setattr(FakeRun, "partial", lambda _: tuple(losses))
    page = open_page()
    worker.step_gate.clear()
    button(page, "Learn from 12 cases").click()
    steps = page.get_by_text(re.compile(r"^step 0 of \d+"))
    total = int(steps.inner_text().split(",")[0].split()[-1])
    losses.extend([0.7, 0.6, 0.5])
    page.get_by_text(re.compile(rf"^step 3 of {total}, about .* left$")).wait_for()
    bar = page.get_by_role("progressbar", name="Learning")
    assert bar.evaluate("bar => bar.value") == pytest.approx(3 / total)
    with page.expect_response(lambda answer: answer.url.endswith("/cancel")) as cancelled:
        button(page, "Stop").click()
    assert cancelled.value.json()["status"] == "cancelled"
    page.get_by_text("Stopped.", exact=True).wait_for()
    page.wait_for_function("() => !document.querySelector('progress')")

    worker.refuse = InternalError("it broke")
    worker.step_gate.set()
    button(page, "Learn from 12 cases").click()
    page.get_by_role("region", name="Learn").get_by_role("alert").wait_for()
    worker.refuse = None
    learn(page, 12)


def test_health_is_what_the_server_found_and_leads_to_the_cases(open_page, listening: Listening) -> None:
    page = open_page()
    page.get_by_label("Input of case 11", exact=True).fill("The search page only shows an error 500.")
    learn(page, 12)
    button(page, "Check mails@1").click()
    verdicts = page.get_by_role("list", name="Verdicts").get_by_role("listitem")
    verdicts.first.wait_for()
    found = post(f"{listening.url}/v1/adapters/{adapter_of(page, listening)}/diagnose", {"folds": 4})
    assert found["cache"] == "hit"
    for shown, question in zip(verdicts.all_inner_texts(), found["questions"], strict=True):
        assert shown.startswith(f"{question['name']} {question['verdict']}")
        assert f"Right for {question['held_out']['correct']} of {question['held_out']['n']}" in shown
        assert all(reason["message"] in shown for reason in question["reasons"])
    finding = (
        page.get_by_role("list", name="Cases to look at").get_by_role("listitem").filter(has_text="team")
    )
    assert "Rows 9 and 11, team: one input with different answers, “technical” and “delivery”." in (
        finding.first.inner_text()
    )
    finding.first.get_by_role("button", name="Show it").click()
    page.locator("[aria-label='Input of case 9']:focus").wait_for()
    page.reload()
    verdicts.first.wait_for()
    page.get_by_label("Input of case 9", exact=True).fill("Something else.")
    assert button(page, "Check mails@1").is_disabled()


def test_the_certificate_is_what_the_server_would_find(open_page, listening: Listening) -> None:
    page = open_page()
    learn(page, 12)
    bring(page, "Inputs", "input\n" + "".join(f"row {n}\n" for n in range(40)))
    answer(page, 40)
    page.evaluate(LABEL)
    page.get_by_label("Target error of a certificate").select_option("0.2")
    line = page.get_by_role("list", name="Certificates").get_by_role("listitem").filter(has_text="team")
    line.get_by_role("button", name="Set the gate there").click()
    gate = page.evaluate("async () => (await import('/playground/store.js')).get().gate")
    cases = page.evaluate(INPUTS)
    url = f"{listening.url}/v1/adapters/{adapter_of(page, listening)}/calibrate"
    found = post(url, {"question": "team", "cases": cases, "samples": 16})
    (certificate,) = [one for one in found["certificates"] if one["target_error"] == 0.2]
    assert gate == certificate["threshold"]
    assert f"{certificate['accepted']} of {certificate['n']} labelled ones" in line.inner_text()
    urgent = page.get_by_role("list", name="Certificates").get_by_role("listitem").filter(has_text="urgent")
    assert "none yet. There are 0 labels; about" in urgent.inner_text()
    page.get_by_role("region", name="Gate").get_by_role("combobox").first.select_option(label="team")
    assert page.locator(".curve line.certified").count() == 1
    page.get_by_label("Target error of a certificate").select_option("0.02")
    page.get_by_text("team: none").wait_for()
    assert page.locator(".curve line.certified").count() == 0


def test_two_versions_are_compared_on_the_same_inputs(open_page, listening: Listening) -> None:
    page = open_page()
    learn(page, 12)
    page.get_by_label("Effort").select_option("fast")
    page.get_by_label("Learn from the first cases").fill("8")
    learn(page, 8)
    assert page.get_by_role("row", name="mails@2 8 fast").is_visible()
    sent: list[dict] = []
    page.on("request", lambda r: sent.append(r.post_data_json) if r.url.endswith("/v1/decisions") else None)
    button(page, "Compare on 7 inputs").click()
    table = page.get_by_role("region", name="Comparison")
    table.wait_for()
    page.wait_for_function("() => !document.querySelector('progress')")
    assert [body["model"] for body in sent] == ["mails@1"] * 7 + ["mails@2"] * 7
    labels = {row["input"]: row["answers"].get("team") for row in page.evaluate(INPUTS)}
    right = {"mails@1": 0, "mails@2": 0}
    for body in sent:
        team = post(f"{listening.url}/v1/decisions", body)["answers"][0]
        right[body["model"]] += team["choice"] == labels.get(body["input"])
    assert table.get_by_role("row", name=f"team {right['mails@1']} of 5 {right['mails@2']} of 5").count() == 1
    button(page, "Next difference").click()
    sides = page.get_by_role("group", name=re.compile("^team by mails@"))
    assert sides.count() == 2
    assert sides.first.inner_text() != sides.last.inner_text()
    # The answers of the table are those of no version yet.
    assert button(page, "Answer 7 inputs").is_enabled()
    page.get_by_label("First version").select_option("without cases")
    assert button(page, "Compare on 7 inputs").is_enabled()
