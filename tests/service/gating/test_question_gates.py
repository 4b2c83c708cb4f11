"""Certified gates by question: each has its own calibration, feedback and alarms, and journal."""

from __future__ import annotations

import shutil
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from abmll.assurance.certificates import Certificate, certify_looks
from abmll.prediction.run import Prediction
from abmll.prediction.uncertainty import Predictive, Uncertainty
from abmll.text.questions import Case, Question, examples_of
from model_store.adapters.gate_journals import GateJournals
from service.engine.answers import Decided
from service.engine.requests import AdaptRequest, DecideRequest
from service.errors import CalibrationMissingError, CannotCertifyError, CertificateRevokedError, ServiceError
from service.gating.questions import question_digest
from service.gating.records import GateRequest
from service.gating.rules import outcome_of
from service.gating.state import journal_key, read_state
from tests.service.conftest import Server

TOPIC = Question("topic", "choice", "What is it about?", ("repair", "order"), ("broken", ""))
URGENT = Question("urgent", "predicate", "Is it urgent?", ("yes", "no"))
CASES = (
    Case("the wheel is broken", {"topic": "repair", "urgent": "yes"}),
    Case("two of them please", {"topic": "order", "urgent": None}),
)
TARGET = GateRequest(target_error=0.2, delta=0.1)
TEXTS = [f"text {i}" for i in range(40)]


class Inbox:
    """An adapter of two questions on a running server."""

    def __init__(self, server: Server, client: httpx.AsyncClient, adapter_id: str) -> None:
        self.server, self.client, self.id = server, client, adapter_id

    async def decide(
        self,
        texts: Sequence[str],
        gate: GateRequest | None = None,
        questions: tuple[Question, ...] = (TOPIC, URGENT),
    ) -> Decided:
        asked = DecideRequest(questions, tuple(texts), self.id, gate=gate or GateRequest())
        return await self.server.engine.decide(asked)

    async def post(self, what: str, body: Any, status: int = 200) -> dict[str, Any]:
        answer = await self.client.post(f"/v1/adapters/{self.id}/{what}", json=body)
        assert answer.status_code == status, answer.text
        found: dict[str, Any] = answer.json()
        return found

    async def answers(self, texts: Sequence[str], index: int) -> list[tuple[str, float]]:
        decided = await self.decide(texts)
        rows = [row[index] for row in decided.rows]
        return [(row.prediction.predictive.answer, row.confidence.value) for row in rows]

    async def calibrate(self, index: int, wrong: Sequence[int] = (), **fields: Any) -> dict[str, Any]:
        """Calibrate a question so that the model is right except at `wrong`."""
        question = (TOPIC, URGENT)[index]
        rows = [
            {"input": text, "output": other(question, answer) if i in wrong else answer}
            for i, (text, (answer, _)) in enumerate(zip(TEXTS, await self.answers(TEXTS, index), strict=True))
        ]
        return await self.post("calibrate", {"examples": rows, "question": index, **fields})

    async def calibration(self, **query: Any) -> httpx.Response:
        return await self.client.get(f"/v1/adapters/{self.id}/calibration", params=query)


def other(question: Question, answer: str) -> str:
    return next(option for option in question.options if option != answer)


def run(root: Path, scenario: Callable[[Inbox], Awaitable[None]], **settings: object) -> None:
    server = Server(root, **settings)

    async def play(client: httpx.AsyncClient) -> None:
        support = tuple(examples_of((TOPIC, URGENT), CASES))
        made = await server.engine.create_adapter(AdaptRequest(support))
        await scenario(Inbox(server, client, made.adapter.manifest.id))

    server.run(play)


def journals(root: Path) -> list[str]:
    return sorted(path.name for path in (root / "calibrations").iterdir())


def test_each_question_is_decided_by_its_own_certificate(tmp_path: Path) -> None:
    async def scenario(inbox: Inbox) -> None:
        for index in (0, 1):
            answers = await inbox.answers(TEXTS, index)
            least_sure = sorted(range(40), key=lambda i, own=answers: own[i][1])[: 8 + 6 * index]
            await inbox.calibrate(index, least_sure)
        decided = await inbox.decide(["new one", "new two", *(f"more {i}" for i in range(30))], TARGET)
        thresholds = []
        for index, gate in enumerate(decided.calibrated_gates):
            answers = await inbox.answers(TEXTS, index)
            confidences = [confidence for _, confidence in answers]
            least_sure = sorted(range(40), key=confidences.__getitem__)[: 8 + 6 * index]
            expected = certify_looks(confidences, [i not in least_sure for i in range(40)], 0.2, 0.1, 40)
            assert isinstance(expected, Certificate)
            assert gate is not None
            assert gate.threshold == expected
            thresholds.append(expected.threshold)
            for row in decided.rows:
                assert (row[index].decision == "answer") == (
                    row[index].confidence.value >= expected.threshold
                )
        assert thresholds[0] != thresholds[1]
        ids = [answer.prediction_id for row in decided.rows for answer in row]
        assert len(set(ids)) == 64
        alone = await inbox.decide(["new two"], TARGET, (URGENT,))
        assert alone.rows[0][0].prediction_id == decided.rows[1][1].prediction_id

    run(tmp_path, scenario)


def test_a_question_without_a_calibration_is_named_before_any_model_work(tmp_path: Path) -> None:
    async def scenario(inbox: Inbox) -> None:
        await inbox.calibrate(0)
        before = len(inbox.server.worker.predicted)
        with pytest.raises(CalibrationMissingError, match=r"the question 'Is it urgent\?'") as refused:
            await inbox.decide(["x"], TARGET)
        assert refused.value.param == "questions[1]"
        described = replace(TOPIC, descriptions=("it does not work", ""))
        with pytest.raises(CalibrationMissingError) as refused:  # other confidences than were calibrated
            await inbox.decide(["x"], TARGET, (described,))
        assert refused.value.param == "questions[0]"
        with pytest.raises(CannotCertifyError, match=r"the question 'What is it about\?'"):
            await inbox.decide(["x"], GateRequest(target_error=0.01), (TOPIC,))
        assert len(inbox.server.worker.predicted) == before
        turned = replace(TOPIC, options=TOPIC.options[::-1], descriptions=TOPIC.descriptions[::-1])
        one, two = [await inbox.decide(["x"], TARGET, (question,)) for question in (TOPIC, turned)]
        assert one.calibrated_gates == two.calibrated_gates

    run(tmp_path, scenario)


def test_labels_of_two_questions_count_for_their_own(tmp_path: Path) -> None:
    async def scenario(inbox: Inbox) -> None:
        for index in (0, 1):
            await inbox.calibrate(index)
        decided = await inbox.decide(["one", "two", "three"], TARGET)
        topic, urgent = zip(*decided.rows, strict=True)
        rows = [
            {"prediction_id": row.prediction_id, "label": row.prediction.predictive.answer}
            for row in topic[:2]
        ]
        before = (await inbox.calibration()).json()["questions"]
        found = await inbox.post("feedback", {"feedback": rows})
        assert (found["stored"], found["calibration"]["question"]["index"]) == (2, 0)
        assert "calibrations" not in found
        after = (await inbox.calibration()).json()["questions"]
        assert [view["n"] for view in after] == [42, 40]
        assert after[1] == before[1]
        mixed = [
            {
                "prediction_id": urgent[0].prediction_id,
                "label": urgent[0].prediction.predictive.answer == "yes",
            },
            {"prediction_id": urgent[1].prediction_id, "label": None},
            {
                "prediction_id": topic[0].prediction_id,
                "label": other(TOPIC, topic[0].prediction.predictive.answer),
            },
        ]
        found = await inbox.post("feedback", {"feedback": mixed})
        assert (found["stored"], found["known"]) == (2, 1)
        assert found["contradicted"] == [topic[0].prediction_id]
        own, theirs = found["calibrations"]
        assert own == found["calibration"]
        assert (own["question"]["index"], own["n"], own["warnings"]) == (1, 42, [])
        assert own["accuracy"] == 41 / 42, "what an input does not tell makes any answer wrong"
        assert (theirs["question"]["index"], theirs["n"], len(theirs["warnings"])) == (0, 42, 1)

    run(tmp_path, scenario, feedback_share=1.0)


def test_an_alarm_of_one_question_revokes_no_other_and_a_restart_forgets_nothing(tmp_path: Path) -> None:
    async def drift(inbox: Inbox) -> None:
        for index in (0, 1):
            await inbox.calibrate(index)
        for i in range(12):
            decided = await inbox.decide([f"late {i}"], TARGET, (TOPIC,))
            (row,) = decided.rows[0]
            label = other(TOPIC, row.prediction.predictive.answer)
            found = await inbox.post(
                "feedback", {"feedback": [{"prediction_id": row.prediction_id, "label": label}]}
            )
            if found["calibration"]["state"] == "revoked":
                break

    async def restarted(inbox: Inbox) -> None:
        topic, urgent = (await inbox.calibration()).json()["questions"]
        assert (topic["state"], urgent["state"]) == ("revoked", "active")
        with pytest.raises(CertificateRevokedError, match=r"the question 'What is it about\?'") as refused:
            await inbox.decide(["x"], TARGET)
        assert refused.value.param == "gate"
        await inbox.decide(["x"], TARGET, (URGENT,))
        await inbox.calibrate(0, replace=True)
        assert (await inbox.calibration(question="0")).json()["state"] == "active"
        assert (await inbox.calibration(question="1")).json()["version"] == urgent["version"]

    run(tmp_path, drift, feedback_share=1.0)
    run(tmp_path, restarted, feedback_share=1.0)


def test_cases_are_the_examples_of_one_question_at_a_time(tmp_path: Path) -> None:
    async def scenario(inbox: Inbox) -> None:
        answers = await inbox.answers(TEXTS, 1)
        cases = [
            {"input": text, "answers": {"1": answer == "yes", "0": None}}
            for text, (answer, _) in zip(TEXTS, answers, strict=True)
        ]
        by_cases = await inbox.post(
            "calibrate", {"cases": [*cases, {"input": "z", "answers": {"0": None}}], "question": "1"}
        )
        by_examples = await inbox.calibrate(1, replace=True)
        assert by_cases["id"] == by_examples["id"]
        assert by_cases["question"] == {"index": 1, "instruction": "Is it urgent?"}
        untellable = await inbox.post("calibrate", {"cases": cases, "question": 0})
        assert (untellable["accuracy"], untellable["sets"]) == (0, [])

    run(tmp_path, scenario)


def test_calibrations_go_one_by_one_or_with_their_adapter(tmp_path: Path) -> None:
    async def scenario(inbox: Inbox) -> None:
        for index in (0, 1):
            await inbox.calibrate(index)
        assert len(journals(tmp_path)) == 2
        path = f"/v1/adapters/{inbox.id}/calibration"
        assert (await inbox.client.delete(path, params={"question": "1"})).status_code == 200
        assert (await inbox.client.delete(path, params={"question": "1"})).json()["error"]["code"] == (
            "calibration_missing"
        )
        assert journals(tmp_path) == [journal_key(inbox.id, question_digest(TOPIC.query("")))]
        assert [view["question"]["index"] for view in (await inbox.calibration()).json()["questions"]] == [0]
        assert (await inbox.calibration(question="1")).json()["error"]["code"] == "calibration_missing"
        await inbox.calibrate(1)
        assert (await inbox.client.delete(f"/v1/adapters/{inbox.id}")).status_code == 200
        assert journals(tmp_path) == []

    run(tmp_path, scenario)


def test_both_wires_show_the_certificate_and_the_id_of_each_answer(tmp_path: Path) -> None:
    async def scenario(inbox: Inbox) -> None:
        made = await inbox.calibrate(1)
        extras = {"adapter_id": inbox.id, "gate": {"target_error": 0.2}}
        openai = {
            "model": "fake-1b",
            "input": "new",
            "questions": [{"type": "predicate", "name": "urgent", "instructions": "Is it urgent?"}],
            "abmll": extras,
        }
        typesafe = {
            "model": "fake-1b",
            "state": "new",
            "questions": {"urgent": {"type": "noul", "instructions": "Is it urgent?"}},
            "abmll": extras,
        }
        one = (await inbox.client.post("/v1/decisions", json=openai)).json()["answers"][0]["abmll"]
        two = (await inbox.client.post("/v1/systemone", json=typesafe)).json()["answers"]["urgent"]["abmll"]
        assert one == two
        assert (one["gate"]["calibration_id"], one["gate"]["target_error"]) == (made["id"], 0.2)
        assert one["prediction_id"].startswith("prd_")
        assert one["explored"] is True
        label = {"prediction_id": one["prediction_id"], "label": None}
        found = await inbox.post("feedback", {"feedback": [label]})
        assert (found["stored"], found["calibration"]["n"]) == (1, 41)

    run(tmp_path, scenario, feedback_share=1.0)


def test_no_text_of_a_question_is_kept(tmp_path: Path) -> None:
    async def scenario(inbox: Inbox) -> None:
        await inbox.calibrate(1)
        await inbox.decide(["x"], TARGET, (URGENT,))

    run(tmp_path, scenario)
    (journal,) = (tmp_path / "calibrations").glob("*/journal.jsonl")
    assert "urgent" not in journal.read_text()
    assert len(journal.read_text().splitlines()) == 2


ROW = {"input": "x", "output": "yes"}
REFUSED = {
    "no question of two": ({"examples": [ROW]}, "question", "2 questions"),
    "an unknown index": ({"examples": [ROW], "question": 2}, "question", "no question 2"),
    "a negative index": ({"examples": [ROW], "question": -1}, "question", "no question -1"),
    "an unknown name": ({"examples": [ROW], "question": "topic"}, "question", "no question 'topic'"),
    "a boolean": ({"examples": [ROW], "question": True}, "question", "name or the index"),
    "no option": ({"examples": [ROW, {"input": "y", "output": "maybe"}], "question": 1}, "examples[1].output", "maybe"),
    "a number": ({"examples": [{"input": "y", "output": 1}], "question": 1}, "examples[0].output", "no answer"),
    "half a number": ({"examples": [{"input": "y", "output": 1.5}], "question": 1}, "examples[0].output", "a text"),
    "no option of a case": (
        {"cases": [{"input": "y", "answers": {"1": "maybe"}}], "question": 1}, "cases[0].answers.1", "maybe",
    ),
    "no case of it": ({"cases": [{"input": "y", "answers": {"0": None}}], "question": 1}, "cases", "no case"),
    "cases and examples": ({"cases": [], "examples": [ROW], "question": 1}, "cases", None),
    "nothing": ({"question": 1}, None, "exactly one"),
    "a text beyond the context": (
        {"cases": [{"input": "q", "answers": {"0": None}}, {"input": "y" * 300, "answers": {"1": True}}], "question": 1},
        "cases[1]", None,
    ),
    "the support alone": ({"examples": [{"input": "two of them please", "output": "no"}], "question": 1}, "examples", "left"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_bad_calibrations_of_questions_are_refused_before_any_model_work(tmp_path: Path, name: str) -> None:
    body, param, says = REFUSED[name]

    async def scenario(inbox: Inbox) -> None:
        refusal = (await inbox.post("calibrate", body, 422))["error"]
        assert refusal.get("param") == param
        assert says is None or says in refusal["message"]
        assert inbox.server.worker.predicted == []

    run(tmp_path, scenario)


def test_an_adapter_without_instructions_has_no_questions(server: Server) -> None:
    support = [{"input": "good", "output": "yes"}, {"input": "bad", "output": "no"}]

    async def scenario(client: httpx.AsyncClient) -> None:
        made = await client.post("/v1/adapters", json={"support": support, "options": ["yes", "no"]})
        path = f"/v1/adapters/{made.json()['id']}/calibrate"
        for body, param in (
            ({"examples": [ROW], "question": 0}, "question"),
            ({"cases": [{"input": "x", "answers": {"0": "yes"}}]}, "cases"),
            ({"examples": [ROW, {"input": "y", "output": None}]}, "examples[1].output"),
        ):
            refusal = await client.post(path, json=body)
            assert (refusal.status_code, refusal.json()["error"]["param"]) == (422, param)
        asked = DecideRequest((URGENT,), ("x",), made.json()["id"], gate=TARGET)
        with pytest.raises(ServiceError, match="not calibrated") as missing:
            await server.engine.decide(asked)
        assert missing.value.param == "questions[0]"
        assert server.worker.predicted == []

    server.run(scenario)


# ---- the functions -------------------------------------------------------------------------------


def test_a_journal_that_was_written_before_there_were_questions_is_read_as_it_was(tmp_path: Path) -> None:
    before = Path(__file__).parent / "written_before"
    shutil.copytree(before, tmp_path / "calibrations")
    store = GateJournals(tmp_path / "calibrations")
    (key,) = store.keys()
    state = read_state(key, store.read(key) or [], 0.01)
    # As the code that wrote it found them.
    assert state.id == "cal_6958f004a392bc45ecb49392252a3ff8"
    assert state.lineage == "0608bbd44f5dc3cbf1e9d2298f3685fb"
    assert list(state.logged) == ["prd_781b6ee5888c67d85f518e00b7823214"]
    assert (state.question, len(state.items), state.version) == ("", 13, 2)
    assert all("question" not in record for record in state.shortened(1))


def test_a_journal_of_another_question_is_damaged(tmp_path: Path) -> None:
    async def scenario(inbox: Inbox) -> None:
        await inbox.calibrate(0)

    run(tmp_path, scenario)
    (key,) = journals(tmp_path)
    folder = tmp_path / "calibrations"
    (folder / key).rename(folder / journal_key(key.partition(".")[0], question_digest(URGENT.query(""))))

    async def moved(inbox: Inbox) -> None:
        assert (await inbox.calibration()).json()["error"]["code"] == "calibration_missing"

    run(tmp_path, moved)
    assert journals(tmp_path) == [".damaged"]


def test_what_an_input_does_not_tell_makes_every_answer_wrong() -> None:
    found = Predictive(("yes", "no"), (0.8, 0.2), (0.0, 0.0), Uncertainty(0.6, 0.6, 0.0, 0.0), 8)
    outcomes = [
        outcome_of(URGENT.example("x", label), Prediction(found, 1, 1, answerable=0.9), 0.8, "q")
        for label in ("yes", "no", None)
    ]
    assert [(one.correct, one.score) for one in outcomes] == [
        (True, pytest.approx(0.2)), (False, pytest.approx(0.8)), (False, None),
    ]  # fmt: skip
    assert len({one.key for one in outcomes}) == 1
