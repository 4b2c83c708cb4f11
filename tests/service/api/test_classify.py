"""Cohere's Classify, called by Cohere's own client."""

from __future__ import annotations

import asyncio
import contextlib
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cohere
import httpx
import pytest

from service.api.classify.requests import field_name
from tests.service.conftest import Listening, Server
from tests.service.fakes import MAX_TOKENS

EXAMPLES = [
    cohere.ClassifyExample(text="good", label="yes"),
    cohere.ClassifyExample(text="bad", label="no"),
    cohere.ClassifyExample(text="great", label="yes"),
]
SUPPORT = [{"input": example.text, "output": example.label} for example in EXAMPLES]
INPUTS = ["fine", "awful"]
NATIVE: dict[str, Any] = {
    "support": SUPPORT,
    "options": ["yes", "no"],
    "inputs": INPUTS,
    "truncate": True,
}
LIMITS = {"max_support": 4, "max_inputs": 3, "max_options": 3, "max_text_chars": 300, "max_steps": 8}


class Service:
    """A listening server, with Cohere's client for it."""

    def __init__(self, server: Server, listening: Listening) -> None:
        self.server, self.url = server, listening.url
        self.client = cohere.Client("any key", base_url=self.url, max_retries=0)

    def classify(self, abmll: dict[str, Any] | None = None, **fields: Any) -> cohere.ClassifyResponse:
        options: dict[str, Any] = {"additional_body_parameters": {"abmll": abmll}} if abmll else {}
        return self.client.classify(**fields, request_options=options)

    def native(self, body: dict[str, Any]) -> dict[str, Any]:
        return httpx.post(f"{self.url}/v1/predict", json=body).raise_for_status().json()

    def adapter(self, body: dict[str, Any]) -> str:
        return httpx.post(f"{self.url}/v1/adapters", json=body).raise_for_status().json()["id"]


@contextlib.contextmanager
def serving(root: Path) -> Iterator[Service]:
    server = Server(root, **LIMITS)
    with server.listening() as running:
        service = Service(server, running)
        with service.client:
            yield service


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with serving(tmp_path) as service:
        yield service


@pytest.fixture(scope="module")
def idle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Yield a service for requests that are all refused."""
    with serving(tmp_path_factory.mktemp("idle")) as service:
        yield service


def check_equal(answer: cohere.ClassifyResponse, native: dict[str, Any], inputs: list[str]) -> None:
    """Check that the fields that both answers have are equal."""
    assert [c.input for c in answer.classifications] == inputs
    assert len({c.id for c in answer.classifications}) == len(inputs)
    for ours, prediction in zip(answer.classifications, native["predictions"], strict=True):
        assert (ours.prediction, ours.confidence) == (prediction["answer"], prediction["confidence"])
        assert (ours.predictions, ours.confidences) == ([ours.prediction], [ours.confidence])
        assert ours.classification_type == "single-label"
        assert [(label, value.confidence) for label, value in ours.labels.items()] == [
            (row["option"], row["probability"]) for row in prediction["distribution"]
        ]
        assert sum(value.confidence for value in ours.labels.values()) == pytest.approx(1)
        elsewhere = "index", "answer", "confidence", "distribution"
        assert ours.abmll == {key: value for key, value in prediction.items() if key not in elsewhere}
    assert answer.meta.api_version.version == "1"
    assert answer.meta.billed_units.classifications == len(inputs)
    assert answer.meta.tokens.input_tokens == native["usage"]["prompt_tokens"]
    assert answer.meta.warnings == native["warnings"]
    for field in ("adapter_id", "seed", "usage"):
        assert answer.abmll[field] == native[field]


def test_examples_are_the_support_and_their_labels_the_options(service: Service) -> None:
    answer = service.classify(examples=EXAMPLES, inputs=INPUTS)
    assert answer.abmll["cache"] == "miss"
    check_equal(answer, service.native(NATIVE), INPUTS)
    assert len(service.server.worker.adapted) == 1
    again = service.classify(examples=EXAMPLES, inputs=INPUTS, model="fake-1b")
    assert again.abmll["cache"] == "hit"
    assert again.id != answer.id


def test_labels_are_in_order_of_first_appearance(service: Service) -> None:
    answer = service.classify(examples=EXAMPLES[::-1][1:], inputs=INPUTS)
    assert list(answer.classifications[0].labels) == ["no", "yes"]


def test_our_options_reach_the_model_and_the_gate(service: Service) -> None:
    ours = {"samples": 4, "seed": 7, "gate": {"min_confidence": 1.0}, "adapt": {"steps": 2}}
    answer = service.classify(ours, examples=EXAMPLES, inputs=INPUTS, truncate="NONE")
    check_equal(answer, service.native({**NATIVE, **ours, "truncate": False}), INPUTS)
    assert answer.abmll["seed"] == 7
    for classification in answer.classifications:
        assert classification.prediction in {"yes", "no"}
        assert classification.abmll["decision"] == "abstain"
        assert classification.abmll["abstain_reason"] == "confidence_below_minimum"
        assert classification.abmll["samples"] == 4
    metrics = httpx.get(f"{service.url}/metrics").text
    assert 'abmll_decisions_total{decision="abstain",reason="confidence_below_minimum"} 4.0' in metrics


def test_an_adapter_is_a_model_that_needs_no_examples(service: Service) -> None:
    adapter = service.adapter({"support": SUPPORT, "options": ["yes", "no"]})
    answer = service.classify(model=adapter, inputs=INPUTS)
    assert answer.abmll["adapter_id"] == adapter
    check_equal(answer, service.native({"adapter_id": adapter, "inputs": INPUTS, "truncate": True}), INPUTS)


def test_the_asynchronous_client_gets_the_same(service: Service) -> None:
    async def ask() -> cohere.ClassifyResponse:
        async with cohere.AsyncClient("any key", base_url=service.url, max_retries=0) as client:
            return await client.classify(examples=EXAMPLES, inputs=INPUTS)

    check_equal(asyncio.run(ask()), service.native(NATIVE), INPUTS)


def test_the_second_clients_classify_is_the_same_route(service: Service) -> None:
    with cohere.ClientV2("any key", base_url=service.url, max_retries=0) as client:
        answer = client.classify(examples=EXAMPLES, inputs=INPUTS)
    check_equal(answer, service.native(NATIVE), INPUTS)


def test_long_texts_are_cut_at_the_end_unless_truncate_is_none(service: Service) -> None:
    long = "a" * (MAX_TOKENS + 1)
    assert service.classify(examples=EXAMPLES, inputs=[long]).classifications[0].input == long
    assert service.classify(examples=EXAMPLES, inputs=[long], truncate="END").abmll["cache"] == "hit"
    with pytest.raises(cohere.BadRequestError) as refused:
        service.classify(examples=EXAMPLES, inputs=[long], truncate="NONE")
    assert "inputs[0]: " in refused.value.body["message"]


def example(text: str = "x", label: str = "yes") -> cohere.ClassifyExample:
    return cohere.ClassifyExample(text=text, label=label)


# (fields, beginning of the message)
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "START": ({"truncate": "START"}, "truncate: Input should be 'NONE' or 'END'"),
    "preset": ({"preset": "mine"}, "preset: there are no presets here"),
    "no inputs": ({"inputs": []}, "inputs: "),
    "too many inputs": ({"inputs": ["a"] * 4}, "inputs: 4 inputs; the limit is 3"),
    "a long input": ({"inputs": ["a" * 301]}, "inputs[0]: a text of 301 characters; the limit is 300"),
    "no examples": ({"examples": None}, "examples are needed, or the id or name of an adapter as model"),
    "empty examples": ({"examples": []}, "examples are needed, or the id or name of an adapter as model"),
    "one label": ({"examples": [example()] * 2}, "examples: all are labelled 'yes': two labels are needed"),
    "no label": ({"examples": [*EXAMPLES, cohere.ClassifyExample(text="x")]}, "examples[3].label: Field required"),
    "a blank label": ({"examples": [*EXAMPLES, example(label=" ")]}, "examples[0]: an option is empty"),
    "labels alike": ({"examples": [*EXAMPLES, example(label="no ")]}, "examples[0]: the options 'no' and 'no ' differ"),
    "too many examples": ({"examples": [*EXAMPLES, *EXAMPLES]}, "examples: 6 examples; the limit is 4"),
    "too many labels": (
        {"examples": [example(label=label) for label in "abcd"]}, "examples[0]: 4 options; the limit is 3",
    ),
    "a long example": ({"examples": [*EXAMPLES, example("a" * 301)]}, "examples[3]: a text of 301 characters"),
    "too many samples": ({"abmll": {"samples": 65}}, "abmll.samples: "),
    "too many steps": ({"abmll": {"adapt": {"steps": 9}}}, "abmll.adapt.steps: 9 steps; the limit is 8"),
    "an unknown field of ours": ({"abmll": {"sample": 6}}, "abmll.sample: Extra inputs are not permitted"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_honoured_is_a_bad_request_before_any_model_work(idle: Service, case: str) -> None:
    fields, message = REFUSED[case]
    with pytest.raises(cohere.BadRequestError) as refused:
        idle.classify(**{"examples": EXAMPLES, "inputs": INPUTS, **fields})
    assert refused.value.body["message"].startswith(message)
    assert refused.value.body["id"] == refused.value.headers["x-request-id"]
    assert list(refused.value.body) == ["message", "id"]
    assert (idle.server.worker.adapted, idle.server.worker.predicted) == ([], [])


def test_an_example_that_is_too_long_names_its_text(idle: Service) -> None:
    examples = [*EXAMPLES, example("a" * (MAX_TOKENS + 1))]
    with pytest.raises(cohere.BadRequestError, match=r"examples\[3\]\.text: "):
        idle.classify(examples=examples, inputs=INPUTS, truncate="NONE")


def test_adapters_without_shared_labels_and_adapters_to_fit_again_are_refused(service: Service) -> None:
    free = service.adapter({"support": [{"input": "2+2", "output": "four"}]})
    with pytest.raises(
        cohere.BadRequestError, match=r"model: the examples of adapter adp_.* share no labels"
    ):
        service.classify(model=free, inputs=INPUTS)
    with pytest.raises(cohere.BadRequestError, match=r"abmll\.adapt applies to examples"):
        service.classify({"adapt": {"steps": 1}}, model=free, inputs=INPUTS)
    assert service.server.worker.predicted == []


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": "adp_" + "0" * 32}, "model: there is no adapter 'adp_0"),
        ({"model": "embed-english-v2.0"}, "model: there is no model 'embed-"),
        ({"model": "embed-english-v2.0", "examples": EXAMPLES}, "model: there is no model 'embed-english-v2.0': a"),
    ],
)  # fmt: skip
def test_unknown_models_are_not_found(idle: Service, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(cohere.NotFoundError) as refused:
        idle.classify(inputs=INPUTS, **fields)
    assert refused.value.body["message"].startswith(message)
    assert idle.server.worker.predicted == []


def test_busy_and_broken_servers_raise_the_clients_errors(tmp_path: Path) -> None:
    server = Server(tmp_path, queue_limit=1)
    server.worker.adapt_gate.clear()
    with server.listening() as running:
        service = Service(server, running)
        with service.client, httpx.Client(base_url=service.url) as other:
            working = threading.Thread(target=other.post, args=["/v1/predict"], kwargs={"json": NATIVE})
            working.start()
            running.wait_for(lambda: len(server.worker.adapted) == 1)
            with pytest.raises(cohere.TooManyRequestsError) as busy:
                service.classify(examples=EXAMPLES, inputs=INPUTS)
            message = "the server is busy with 1 requests; the limit is 1 (setting queue_limit)"
            assert busy.value.body["message"] == message
            assert int(busy.value.headers["retry-after"]) >= 1
            server.worker.adapt_gate.set()
            working.join()
            server.worker.fail = RuntimeError("a secret of the inside")
            with pytest.raises(cohere.InternalServerError) as broken:
                service.classify(examples=EXAMPLES, inputs=INPUTS)
            assert "secret" not in broken.value.body["message"]


@pytest.mark.parametrize(
    ("method", "content", "media_type", "status"),
    [
        ("POST", b"{", "application/json", 400),
        ("POST", b"[]", "application/json", 400),
        ("POST", b"{}", "text/plain", 415),
        ("GET", b"", "application/json", 405),
        ("POST", b" " * (1 << 20) + b"{}", "application/json", 413),
    ],
)
def test_other_errors_have_the_same_shape(
    server: Server, method: str, content: bytes, media_type: str, status: int
) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        headers = {"content-type": media_type}
        response = await client.request(method, "/v1/classify", content=content, headers=headers)
        assert response.status_code == status
        assert list(response.json()) == ["message", "id"]
        assert response.json()["id"] == response.headers["x-request-id"]
        ours = (await client.request(method, "/v1/predict", content=content, headers=headers)).json()
        assert list(ours) == ["error"]

    server.run(scenario)


def test_the_documented_example_runs(service: Service, capsys: pytest.CaptureFixture[str]) -> None:
    page = Path(__file__).parents[3] / "docs/interfaces-classify.md"
    (code,) = re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.DOTALL)
    names: dict[str, Any] = {}
    exec(code.replace("http://localhost:8000", service.url), names)
    with names["client"]:
        assert [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()] == [
            "Where is my package?",
            "Hello",
        ]
        assert names["again"].abmll["cache"] == "hit"


@pytest.mark.parametrize(
    ("native", "ours"),
    [
        ("support[3].output", "examples[3].label"),
        ("support[3].input", "examples[3].text"),
        ("support[0].options", "examples[0]"),
        ("support", "examples"),
        ("inputs[2]", "inputs[2]"),
        ("adapter_id", "model"),
        ("samples", "abmll.samples"),
        ("adapt.steps", "abmll.adapt.steps"),
    ],
)
def test_fields_have_the_names_that_the_caller_used(native: str, ours: str) -> None:
    assert field_name(native) == ours
