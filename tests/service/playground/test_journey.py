"""A person at the page: cases in, answers out, labels, the next version, a file."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
from pathlib import Path
from urllib.request import urlopen

import pytest

from tests.service.conftest import Listening, Server
from tests.service.fakes import FakeWorker

pytestmark = pytest.mark.browser

SHEET = "message\tteam\turgent\n" + "".join(
    f"case {n}\t{['billing', 'delivery', 'technical'][n % 3]}\t{['yes', 'no'][n % 2]}\n" for n in range(9)
)

PASTE = """text => {
    const clipboardData = new DataTransfer();
    clipboardData.setData("text/plain", text);
    const paste = new ClipboardEvent("paste", { clipboardData, bubbles: true, cancelable: true });
    document.activeElement.dispatchEvent(paste);
}"""


def button(page, name: str):
    return page.get_by_role("button", name=name)


def learn(page, cases: int) -> None:
    button(page, f"Learn from {cases} cases").click()
    page.get_by_text("learned from").wait_for()


def answer(page, inputs: int) -> None:
    button(page, f"Answer {inputs} input").click()
    button(page, "All are answered").wait_for()


def bring(page, part: str, text: str) -> None:
    """Paste a text into the dialog of a part, and take its rows."""
    section = page.get_by_role("region", name=part)
    section.get_by_role("button", name="Paste or open a file").click()
    page.get_by_label("Rows", exact=True).fill(text)
    page.get_by_role("button", name="Take").click()


def saved(page) -> list[dict[str, str]]:
    with page.expect_download() as download:
        button(page, "Download answers").click()
    text = Path(download.value.path()).read_text("utf-8-sig")
    return list(csv.DictReader(io.StringIO(text, newline="")))


def test_from_a_paste_to_the_second_version_and_a_file(open_page, listening: Listening) -> None:
    page = open_page()
    bring(page, "Cases", SHEET)
    learn(page, 9)
    page.get_by_role("row", name="mails@1 9").wait_for()

    button(page, "Remove all").last.click()
    page.get_by_label("New inputs, one a line").fill("first\nsecond\nthird")
    page.get_by_role("button", name="Add", exact=True).click()
    button(page, "Answer 3 inputs").wait_for()
    answer(page, 3)
    before = saved(page)
    assert [row["input"] for row in before] == ["first", "second", "third"]
    assert {row["model"] for row in before} == {"mails@1"}

    # The gate: what the slider says is what the file says.
    least = sorted(float(row["team.confidence"]) for row in before)[1]
    page.get_by_label("Least confidence").fill(f"{least - 0.005:.2f}")
    decisions = [(float(row["team.confidence"]), row["team.decision"]) for row in saved(page)]
    bound = float(page.get_by_label("Least confidence").input_value())
    assert decisions == [
        (confidence, "answer" if confidence >= bound else "abstain") for confidence, _ in decisions
    ]
    assert {decision for _, decision in decisions} == {"answer", "abstain"}

    # Label an answer that abstains: it becomes a case of the second version.
    page.get_by_label("Least confidence").fill("1")
    button(page, "Next unsure answer").click()
    page.get_by_label("Right answer to team").select_option("delivery")
    page.get_by_text("of 1 with a label").wait_for(state="hidden")
    button(page, "Make it a case").click()
    page.get_by_text("The cases have changed since mails@1").wait_for()
    learn(page, 10)
    page.get_by_role("row", name="mails@2 10").wait_for()
    answer(page, 3)
    after = saved(page)
    assert {row["model"] for row in after} == {"mails@2"}
    assert [row["team.confidence"] for row in after] != [row["team.confidence"] for row in before]

    with urlopen(f"{listening.url}/v1/names/mails") as response:  # the address of this test's server
        history = json.load(response)["history"]
    assert [version["version"] for version in history] == [2, 1]


def test_the_page_decides_as_the_server_does(open_page, listening: Listening) -> None:
    page = open_page()
    decided = []
    page.on("response", lambda r: decided.append(r.json()) if r.url.endswith("/v1/decisions") else None)
    page.get_by_label("Least confidence").fill("0.4")
    answer(page, 7)
    rows = saved(page)
    by_input = {tuple(row[f"{q}.decision"] for q in ("team", "urgent", "anger")) for row in rows}
    assert by_input == {tuple(a["abmll"]["decision"] for a in body["answers"]) for body in decided}
    assert len(by_input) > 1


def test_a_reload_changes_nothing(open_page) -> None:
    page = open_page()
    learn(page, 12)
    answer(page, 7)
    page.get_by_label("Least confidence").fill("0.41")
    page.get_by_label("Input of case 1", exact=True).fill("Something else.")
    page.reload()
    page.get_by_text("The cases have changed since mails@1").wait_for()
    assert page.get_by_label("Input of case 1", exact=True).input_value() == "Something else."
    assert page.get_by_label("Least confidence").input_value() == "0.41"
    assert button(page, "All are answered").is_visible()


def test_a_paste_into_the_table_fills_its_cells(open_page) -> None:
    page = open_page()
    page.get_by_label("Input of case 11", exact=True).focus()
    page.evaluate(
        PASTE,
        "eleven\tbilling\tyes\t2\ntwelve\t?\t\tcalm\nthirteen\tDelivery\n",
    )
    button(page, "Learn from 13 cases").wait_for()
    cells = [page.get_by_label(f"{q} of case {n}") for n in (11, 12, 13) for q in ("team", "urgent", "anger")]
    assert [cell.input_value() for cell in cells] == [
        "=billing", "=yes", "=furious", "?", "=yes", "=calm", "=delivery", "", "",
    ]  # fmt: skip


def test_enter_goes_down_and_makes_a_case_below_the_last(open_page) -> None:
    page = open_page()
    page.get_by_label("Input of case 12", exact=True).press("Enter")
    page.get_by_label("Input of case 13", exact=True).wait_for()
    page.locator("[aria-label='Input of case 13']:focus").wait_for()
    page.keyboard.type("new")
    assert page.get_by_label("Input of case 13", exact=True).input_value() == "new"


def test_answers_follow_an_option_that_is_renamed_but_never_become_another(open_page) -> None:
    page = open_page()
    option = page.get_by_label("option 1 of team", exact=True)
    cell = page.get_by_label("team of case 1", exact=True)
    option.fill("delivery")  # on the way to another text
    option.fill("delivery of bills")
    option.blur()
    assert cell.input_value() == "=delivery of bills"
    assert page.get_by_label("team of case 2", exact=True).input_value() == "=delivery"
    option.fill("delivery")
    option.blur()
    assert cell.input_value() == "=delivery of bills"
    assert cell.get_attribute("aria-invalid") == "true"


def test_a_file_of_cases_replaces_the_questions_of_the_example_and_no_others(open_page) -> None:
    page = open_page()
    page.get_by_label("What anger asks").fill("How upset is the writer?")
    button(page, "Paste or open a file").first.click()
    rows = "".join(f"text {n},{'ab'[n % 2]},billing\n" for n in range(6))
    page.get_by_label("Rows", exact=True).fill(f"text,kind,team\n{rows}")
    page.get_by_text(
        "Answers: team. New questions: kind (one of 2). Questions of the example that go: urgent."
    ).wait_for()
    button(page, "Take 6 rows").click()
    names = page.get_by_label("Name of the question")
    page.get_by_label("What kind asks").wait_for()
    assert [names.nth(n).input_value() for n in range(names.count())] == ["team", "anger", "kind"]


# ---- errors in words, beside what is wrong -------------------------------------------------------


def test_what_is_wrong_is_said_where_it_is(open_page, listening: Listening) -> None:
    page = open_page()
    bring(page, "Cases", "input,team\na,billing\nb,deliveri\n")
    cases = page.get_by_role("region", name="Cases")
    cases.get_by_text("Row 2: “deliveri” is no answer to “team”. It has “billing”").wait_for()
    assert cases.get_by_label("team of case 2").get_attribute("aria-invalid") == "true"
    page.get_by_label("option 1 of team", exact=True).fill("delivery")
    button(page, "Learn from 2 cases").click()
    questions = page.get_by_role("region", name="Questions")
    questions.get_by_text("Two options are called “delivery”. Rename one of them.").wait_for()


def test_an_error_of_the_server_stands_at_the_case_that_it_names(open_page) -> None:
    page = open_page()
    page.get_by_label("Input of case 3", exact=True).fill("word " * 80)  # the fake model reads 256 characters
    button(page, "Learn from 12 cases").click()
    cases = page.get_by_role("region", name="Cases")
    alert = cases.get_by_role("alert")
    alert.wait_for()
    assert alert.inner_text().startswith("Row 3: ")
    assert "256" in alert.inner_text()
    assert page.get_by_label("Input of case 3", exact=True).get_attribute("aria-invalid") == "true"


def test_a_name_that_is_none_is_refused_beside_it_and_the_adapter_stays(open_page) -> None:
    page = open_page()
    page.get_by_label("Name", exact=True).fill("My Mails")
    button(page, "Learn from 12 cases").click()
    page.locator("#name-problems").get_by_role("alert").wait_for()
    assert "letter" in page.locator("#name-problems").inner_text()
    page.get_by_role("row", name="adp_").wait_for()
    answer(page, 7)


def test_one_input_that_is_too_long_says_so_and_the_others_are_answered(open_page) -> None:
    page = open_page()
    bring(page, "Inputs", "input\nshort\n" + "long " * 80 + "\nbrief\n")
    button(page, "Answer 3 inputs").click()
    page.get_by_text("answered 2 inputs; 1 could not be answered").wait_for()
    rows = saved(page)
    assert [bool(row["problem"]) for row in rows] == [False, True, False]
    assert "256" in rows[1]["problem"]


# ---- files ---------------------------------------------------------------------------------------


class Halting(FakeWorker):
    """A worker that stops in the middle of its 60th job until its gate is set again."""

    def _predict_all(self, *arguments):
        if len(self.predicted) == 60:
            self.predict_gate.clear()
        return super()._predict_all(*arguments)


def test_a_whole_file_goes_in_with_progress_is_stopped_and_goes_on(tmp_path, browser) -> None:
    worker = Halting()
    with Server(tmp_path, worker).listening() as running:
        page = browser.new_context().new_page()
        page.goto(f"{running.url}/playground")
        section = page.get_by_role("region", name="Inputs and answers")
        section.get_by_role("button", name="Paste or open a file").click()
        rows = "".join(f'{n};"text {n}";{["no", "yes"][n % 2]}\r\n' for n in range(300))
        content = ("\ufeffno;text;urgent\r\n" + rows).encode()
        page.locator("input[type=file]").set_input_files(
            {"name": "mails.csv", "mimeType": "text/csv", "buffer": content}
        )
        page.get_by_text(
            "300 rows. The input is “text”. Answers: urgent. Kept beside the answers: no."
        ).wait_for()
        button(page, "Take 300 rows").click()
        button(page, "Answer 300 inputs").click()
        page.get_by_role("progressbar", name="Answering").wait_for()
        page.get_by_text(re.compile(r"^[1-9]\d* of 300, about ")).wait_for()
        running.wait_for(lambda: not worker.predict_gate.is_set())
        button(page, "Stop").click()
        page.get_by_text("Stopped. What was answered is kept.").wait_for()
        worker.predict_gate.set()
        left = int(section.get_by_role("button", name=re.compile("^Answer ")).inner_text().split()[1])
        assert 0 < left < 300
        answer(page, left)
        out = saved(page)
        assert [(row["input"], row["no"]) for row in out] == [(f"text {n}", str(n)) for n in range(300)]
        assert all(row["team"] and float(row["team.confidence"]) > 0.33 for row in out)
        assert [row["urgent.right_answer"] for row in out[:2]] == ["no", "yes"]
        page.context.close()


def test_a_file_may_be_dropped(open_page) -> None:
    page = open_page()
    page.evaluate(
        """() => {
            const dataTransfer = new DataTransfer();
            dataTransfer.items.add(new File(['{"input": "a", "answers": {"team": "billing"}}\\n'], "c.jsonl"));
            const at = document.getElementById("cases-title");
            for (const type of ["dragover", "drop"])
                at.dispatchEvent(new DragEvent(type, { dataTransfer, bubbles: true, cancelable: true }));
        }"""
    )
    button(page, "Take 1 rows").click()
    button(page, "Learn from 1 case").wait_for()


def test_a_table_of_5000_rows_draws_those_in_sight(open_page) -> None:
    page = open_page()
    button(page, "Paste or open a file").first.click()
    page.evaluate(PASTE, "input\tteam\n" + "".join(f"row {n}\tbilling\n" for n in range(5000)))
    button(page, "Take 5,000 rows").click()
    table = page.get_by_role("table", name="Cases")
    assert table.get_attribute("aria-rowcount") == "5001"
    assert table.get_by_role("row").count() < 40
    table.evaluate("table => { table.scrollTop = table.scrollHeight; }")
    page.get_by_label("Input of case 5000", exact=True).wait_for()
    assert table.get_by_role("row").count() < 40
    page.get_by_label("Input of case 4999", exact=True).fill("changed")
    assert page.get_by_label("Input of case 4999", exact=True).input_value() == "changed"


# ---- code, keys, paths ---------------------------------------------------------------------------


COMMANDS = {
    "curl": ["a.sh", "bash"],
    "Python": ["a.py", sys.executable, "-W", "ignore"],
    "JavaScript": ["a.mjs", "node"],
}


@pytest.mark.parametrize("request_name", ["Learn from the cases", "Ask about the selected input"])
def test_the_code_that_is_shown_runs(open_page, listening: Listening, tmp_path, request_name: str) -> None:
    page = open_page()
    page.get_by_label("Input of case 1", exact=True).fill("It's \"odd\": 'quotes' \\ and $HOME.")
    learn(page, 12)
    answer(page, 7)
    page.get_by_text("The same in code").click()
    page.get_by_label("Request").select_option(request_name)
    with urlopen(f"{listening.url}/playground/client.js") as response:
        (tmp_path / "client.js").write_bytes(response.read())
    found = {}
    for language, (name, *command) in COMMANDS.items():
        page.get_by_label("Language").select_option(language)
        script = tmp_path / name
        script.write_text(page.locator("pre").inner_text())
        try:
            done = subprocess.run([*command, script], capture_output=True, text=True, timeout=60, check=True)
        except FileNotFoundError:
            continue  # no Node here: the page's own requests use the same client
        read = json.loads(done.stdout)
        answers = read if isinstance(read, list) else read["answers"]
        found[language] = [a.get("probabilities") or a["probability"] for a in answers]
    assert len(found) >= 2
    assert all(answers == found["curl"] for answers in found.values())


def test_a_server_that_wants_a_key_is_given_one(open_page) -> None:
    page = open_page()
    seen = []

    def guard(route) -> None:
        seen.append(route.request.headers.get("authorization"))
        if seen[-1] == "Bearer secret":
            route.continue_()
        else:
            route.fulfill(status=401, json={"error": {"code": "unauthorized", "message": "a key is needed"}})

    page.route("**/v1/**", guard)
    page.reload()
    page.get_by_label("This server wants a key").fill("secret")
    button(page, "Use it").click()
    page.get_by_text("fake-1b").wait_for()
    answer(page, 7)
    assert None in seen
    assert "secret" not in page.evaluate("JSON.stringify({...localStorage})")


def test_it_works_below_the_path_of_a_proxy(tmp_path, browser) -> None:
    with Server(tmp_path, root_path="/abmll").listening() as running:
        page = browser.new_context().new_page()
        page.goto(f"{running.url}/abmll/playground")
        page.get_by_text("fake-1b").wait_for()
        answer(page, 7)
        page.context.close()


# ---- for everyone --------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [(1400, 1000), (390, 844)], ids=["desk", "phone"])
def test_axe_finds_nothing_serious(open_page, scheme: str, size: tuple[int, int]) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = open_page(color_scheme=scheme, viewport={"width": size[0], "height": size[1]})

    def serious() -> list[str]:
        found = axe.run(page).response["violations"]
        return [
            f"{one['id']}: {node['target']}: {node['failureSummary']}"
            for one in found
            for node in one["nodes"]
            if one["impact"] in {"serious", "critical"}
        ]

    assert serious() == []
    learn(page, 12)
    answer(page, 7)
    page.get_by_label("Least confidence").fill("0.4")
    button(page, "Check mails@1").click()
    page.get_by_role("list", name="Verdicts").wait_for()
    button(page, "Compare on 7 inputs").click()
    page.get_by_role("group", name="team by mails@1").wait_for()
    page.get_by_text("The same in code").click()
    page.get_by_label("option 1 of team", exact=True).fill("")
    button(page, "Learn from 12 cases").click()
    page.get_by_text("An option is empty").wait_for()
    assert serious() == []
    button(page, "Paste or open a file").first.click()
    page.get_by_label("Rows", exact=True).fill("input,team\na,wrong\n")
    assert serious() == []


def test_no_part_is_wider_than_a_phone(open_page) -> None:
    page = open_page(viewport={"width": 360, "height": 740})
    learn(page, 12)
    answer(page, 7)
    button(page, "Compare on 7 inputs").click()
    page.get_by_role("group", name="team by mails@1").wait_for()
    page.get_by_text("The same in code").click()
    assert page.evaluate("document.documentElement.scrollWidth") == 360


def test_answers_are_reached_and_labelled_by_keyboard(open_page) -> None:
    page = open_page()
    answer(page, 7)
    table = page.get_by_role("table", name="Inputs and answers")
    table.focus()
    for _ in range(5):
        page.keyboard.press("ArrowDown")
    region = page.get_by_role("region", name="Answers about the selected input")
    region.get_by_text("Do you have a job for me?").wait_for()
    page.get_by_label("Right answer to urgent").focus()
    page.keyboard.press("n")
    page.keyboard.press("o")
    assert page.get_by_label("Right answer to urgent").input_value() in {"=no", ""}
