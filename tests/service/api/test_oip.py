"""The Open Inference Protocol, called by Triton's client."""

from __future__ import annotations

import contextlib
import json
import re
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException, deserialize_bytes_tensor, serialize_byte_tensor

from model_store.pretrained.identity import BaseIdentity
from service.api.oip.binary import decode_texts, encode, split
from service.api.oip.requests import field_name
from service.errors import InvalidRequestError
from tests.service.conftest import Server
from tests.service.fakes import MAX_TOKENS, FakeWorker, served_model

SUPPORT = [{"input": "good", "output": "yes"}, {"input": "bad", "output": "no"}]
CREATE: dict[str, Any] = {"support": SUPPORT, "options": ["yes", "no"]}
TEXTS = ["fine", "schön, 好 👍", ""]
OUTPUTS = ["answer", "confidence", "decision", "probabilities", "options", "mutual_information"]
LIMITS = {"max_support": 4, "max_inputs": 3, "max_options": 3, "max_text_chars": 300, "max_steps": 8}
BASE = "org/fake-1b@main"  # with a slash, like ids from a hub


class Service:
    """A listening server with an adapter, and Triton's client for it."""

    def __init__(self, server: Server, url: str) -> None:
        self.server = server
        self.http = httpx.Client(base_url=url)
        self.client = triton.InferenceServerClient(url.removeprefix("http://"))
        self.adapter = ""

    def adapt(self, body: dict[str, Any]) -> str:
        return self.http.post("/v1/adapters", json=body).raise_for_status().json()["id"]

    def native(self, body: dict[str, Any]) -> dict[str, Any]:
        return self.http.post("/v1/predict", json=body).raise_for_status().json()

    def infer(self, model: str | None = None, *, binary: bool = True, **how: Any) -> triton.InferResult:
        return self.client.infer(model or self.adapter, [tensor(TEXTS, binary=binary)], **how)

    def post(self, body: object, model: str | None = None, **headers: str) -> httpx.Response:
        return self.http.post(f"/v2/models/{model or self.adapter}/infer", json=body, headers=headers)


@contextlib.contextmanager
def serving(root: Path) -> Iterator[Service]:
    served = replace(served_model(), base=BaseIdentity(BASE, "sha256:0", "none"))
    server = Server(root, FakeWorker(served), **LIMITS)
    with server.listening() as running:
        service = Service(server, running.url)
        with service.client, service.http:
            service.adapter = service.adapt(CREATE)
            yield service


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with serving(tmp_path_factory.mktemp("oip")) as service:
        yield service


def tensor(texts: list[str], *, binary: bool, shape: list[int] | None = None) -> triton.InferInput:
    array = np.array(texts, dtype=object).reshape(shape or [len(texts)])
    given = triton.InferInput("text", list(array.shape), "BYTES")
    return given.set_data_from_numpy(array, binary_data=binary)


def column(result: triton.InferResult, name: str) -> Any:
    """Return an output, with texts as `str`; the client has bytes where the data was binary."""
    values = result.as_numpy(name).tolist()
    return [v.decode() if isinstance(v, bytes) else v for v in values]


def check_equal(result: triton.InferResult, native: dict[str, Any]) -> None:
    """Check that the fields that both answers have are equal."""
    predictions = native["predictions"]
    shares = [prediction["distribution"] for prediction in predictions]
    assert column(result, "answer") == [prediction["answer"] for prediction in predictions]
    assert column(result, "confidence") == [prediction["confidence"] for prediction in predictions]
    assert column(result, "decision") == [prediction["decision"] for prediction in predictions]
    assert column(result, "options") == [share["option"] for share in shares[0]]
    assert column(result, "probabilities") == [[share["probability"] for share in row] for row in shares]
    assert column(result, "mutual_information") == [
        prediction["uncertainty"]["mutual_information"] for prediction in predictions
    ]
    response = result.get_response()
    assert response["parameters"]["adapter_id"] == native["adapter_id"]
    assert response["parameters"]["seed"] == native["seed"]


# ---- health and metadata -------------------------------------------------------------------------


def test_the_server_is_live_and_ready_and_tells_what_it_is(service: Service) -> None:
    assert service.client.is_server_live()
    assert service.client.is_server_ready()
    assert service.http.get("/v2/health/ready").json() == {"live": True, "ready": True}
    metadata = service.client.get_server_metadata()
    assert (metadata["name"], metadata["extensions"]) == ("abmll-serve", ["binary_tensor_data"])
    assert metadata["version"] == service.http.get("/v1/version").json()["version"]


def test_a_server_that_loads_is_live_and_not_ready(tmp_path: Path) -> None:
    server = Server(tmp_path)
    server.worker.load_gate.clear()

    async def scenario(client: httpx.AsyncClient) -> None:
        assert (await client.get("/v2/health/live")).json() == {"live": True}
        for path in ("/v2/health/ready", "/v2/models/x/ready", "/v2/models/x"):
            response = await client.get(path)
            assert (response.status_code, response.json()) == (503, {"error": "the model is loading"})
        server.worker.load_gate.set()

    server.run(scenario, ready=False)


@pytest.mark.parametrize("version", ["", "1"])
def test_adapters_and_the_base_are_models(service: Service, version: str) -> None:
    for model, classes in ((service.adapter, 2), (BASE, -1)):
        assert service.client.is_model_ready(model, version)
        metadata = service.client.get_model_metadata(model, version)
        assert (metadata["name"], metadata["versions"]) == (model, ["1"])
        assert metadata["inputs"] == [{"name": "text", "datatype": "BYTES", "shape": [-1]}]
        assert [output["name"] for output in metadata["outputs"]] == OUTPUTS
        shapes = {output["name"]: output["shape"] for output in metadata["outputs"]}
        assert shapes["probabilities"] == [-1, classes]
        assert shapes["options"] == [classes]


def test_metadata_agrees_with_what_comes(service: Service) -> None:
    promised = service.client.get_model_metadata(service.adapter)["outputs"]
    given = service.infer().get_response()["outputs"]
    assert [(t["name"], t["datatype"]) for t in promised] == [(t["name"], t["datatype"]) for t in given]
    for promise, gift in zip(promised, given, strict=True):
        assert [len(TEXTS) if length == -1 else length for length in promise["shape"]] == gift["shape"]


# ---- answers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["", "1"])
@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False, None])
def test_answers_are_those_of_predict_in_json_and_as_binary_data(
    service: Service, binary_in: bool, binary_out: bool | None, version: str
) -> None:
    outputs = None
    if binary_out is not None:
        outputs = [triton.InferRequestedOutput(name, binary_data=binary_out) for name in OUTPUTS]
    result = service.infer(binary=binary_in, outputs=outputs, model_version=version, request_id="mine")
    check_equal(result, service.native({"adapter_id": service.adapter, "inputs": TEXTS}))
    response = result.get_response()
    assert (response["model_name"], response["model_version"], response["id"]) == (
        service.adapter,
        "1",
        "mine",
    )
    assert all(("data" in output) is (binary_out is False) for output in response["outputs"])


def test_a_column_of_texts_is_a_list_of_texts(service: Service) -> None:
    native = service.native({"adapter_id": service.adapter, "inputs": TEXTS})
    for binary in (True, False):
        given = tensor(TEXTS, binary=binary, shape=[3, 1])
        check_equal(service.client.infer(service.adapter, [given]), native)
    nested = {"name": "text", "shape": [3, 1], "datatype": "BYTES", "data": [[text] for text in TEXTS]}
    answers = service.post({"inputs": [nested]}).json()["outputs"][0]["data"]
    assert answers == [prediction["answer"] for prediction in native["predictions"]]


def test_parameters_are_the_fields_of_predict(service: Service) -> None:
    ours = {"samples": 4, "seed": 7, "truncate": True, "options": '["a", "b", "c"]', "min_margin": 1}
    native = {
        "samples": 4,
        "seed": 7,
        "truncate": True,
        "options": ["a", "b", "c"],
        "gate": {"min_margin": 1},
    }
    result = service.infer(parameters=ours)
    check_equal(result, service.native({"adapter_id": service.adapter, "inputs": TEXTS, **native}))
    assert set(column(result, "decision")) == {"abstain"}
    assert column(result, "options") == ["a", "b", "c"]


NOTHING: list[dict[str, Any]] = [
    {"parameters": None, "outputs": None, "id": None},
    {"parameters": {"samples": None, "seed": None, "truncate": None, "options": None, "min_margin": None, "support": None}},
    {"parameters": {"max_new_tokens": None, "binary_data_output": None, "steps": None}},
    {"parameters": {"sequence_id": 0, "sequence_start": False, "sequence_end": False}},
]  # fmt: skip
IGNORED: list[dict[str, Any]] = [
    {"content_type": "str"},
    {"headers": {"x": "y"}, "priority": 1, "timeout": 1000},
    {"triton_enable_empty_final_response": False},
    {"content_type": None, "x" * 500: [1, {"a": None}]},
]


@pytest.mark.parametrize("more", NOTHING)
def test_null_is_none(service: Service, more: dict[str, Any]) -> None:
    plain, adorned = service.post(text()).json(), service.post({**text(), **more})
    assert adorned.status_code == 200, adorned.text
    assert adorned.json() == plain


@pytest.mark.parametrize("unknown", IGNORED)
def test_unknown_parameters_are_ignored_wherever_the_protocol_has_parameters(
    service: Service, unknown: dict[str, Any]
) -> None:
    plain = service.post({**text(), "outputs": [{"name": "answer"}]}).json()
    (given,) = text()["inputs"]
    for name in (None, unknown):
        body = {
            "inputs": [{**given, "parameters": name}],
            "outputs": [{"name": "answer", "parameters": name}],
            "parameters": name,
        }
        answer = service.post(body)
        assert answer.status_code == 200, answer.text
        parameters = answer.json()["parameters"]
        assert answer.json()["outputs"] == plain["outputs"]
        named = [key for key, value in (name or {}).items() if value is not None]
        assert parameters.pop("ignored", None) == (", ".join(sorted(named))[:200] or None)
        assert parameters == plain["parameters"]


def test_the_base_model_is_adapted_to_the_support_it_is_sent(service: Service) -> None:
    ours = {"support": json.dumps(SUPPORT), "options": '["yes", "no"]', "steps": 3, "beta": 0.5}
    result = service.infer(BASE, parameters=ours)
    assert result.get_response()["parameters"]["cache"] == "miss"
    assert result.get_response()["model_name"] == BASE
    body = {**CREATE, "inputs": TEXTS, "adapt": {"steps": 3, "beta": 0.5}}
    check_equal(result, service.native(body))
    rows = json.dumps([{**row, "options": ["no", "yes"]} for row in SUPPORT])
    assert column(service.infer(BASE, parameters={"support": rows}), "options") == ["no", "yes"]


def test_only_the_requested_outputs_come_in_their_order(service: Service) -> None:
    outputs = [
        triton.InferRequestedOutput("confidence", binary_data=False),
        triton.InferRequestedOutput("answer", binary_data=True),
    ]
    result = service.infer(outputs=outputs)
    assert [output["name"] for output in result.get_response()["outputs"]] == ["confidence", "answer"]
    native = service.native({"adapter_id": service.adapter, "inputs": TEXTS})["predictions"]
    assert column(result, "confidence") == [prediction["confidence"] for prediction in native]
    assert column(result, "answer") == [prediction["answer"] for prediction in native]
    assert result.as_numpy("decision") is None


def test_free_text_has_no_outputs_of_options(service: Service) -> None:
    free = service.adapt({"support": [{"input": "2+2", "output": "four"}]})
    names = [name for name in OUTPUTS if name not in {"probabilities", "options"}]
    metadata = service.client.get_model_metadata(free)
    assert [output["name"] for output in metadata["outputs"]] == names
    result = service.infer(free)
    assert [output["name"] for output in result.get_response()["outputs"]] == names
    assert column(result, "answer") == ["some text"] * 3
    with pytest.raises(
        InferenceServerException, match="there is no output 'options' here; there are answer,"
    ):
        service.infer(free, outputs=[triton.InferRequestedOutput("options")])


def test_decisions_are_counted_and_the_asynchronous_call_answers(tmp_path: Path) -> None:
    with serving(tmp_path) as service:
        asked = service.client.async_infer(
            service.adapter, [tensor(TEXTS, binary=True)], parameters={"min_confidence": 1.0}
        )
        assert column(asked.get_result(), "decision") == ["abstain"] * 3
        metrics = service.http.get("/metrics").text
        assert 'abmll_decisions_total{decision="abstain",reason="confidence_below_minimum"} 3.0' in metrics


def test_the_documented_examples_run(service: Service, capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[3] / "docs/interfaces-oip.md").read_text("utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    url = str(service.http.base_url).removeprefix("http://")
    exec(code.replace("localhost:8000", url), {"ADAPTER_ID": service.adapter})
    inputs = ["Where is my package?", "Hello"]
    native = service.native(
        {"adapter_id": service.adapter, "inputs": inputs, "gate": {"min_confidence": 0.7}}
    )
    assert capsys.readouterr().out.splitlines() == [
        f"{row['answer'].encode()} {row['confidence']} {row['decision'].encode()}"
        for row in native["predictions"]
    ]
    (body,) = re.findall(r"-d '(\{.*?\})'\n", page, re.DOTALL)
    answer, confidence = service.post(json.loads(body)).json()["outputs"]
    assert answer["data"] == [row["answer"] for row in native["predictions"]]
    assert confidence["data"] == [row["confidence"] for row in native["predictions"]]


# ---- refusals ------------------------------------------------------------------------------------


def text(**fields: Any) -> dict[str, Any]:
    row = {"name": "text", "shape": [2], "datatype": "BYTES", "data": ["a", "b"], **fields}
    return {"inputs": [{name: value for name, value in row.items() if value is not ...}]}


def with_parameters(**parameters: Any) -> dict[str, Any]:
    return {**text(), "parameters": parameters}


# (body, beginning of the message)
REFUSED: dict[str, tuple[object, str]] = {
    "no object": ([], "Input should be a valid dictionary or object"),
    "no inputs": ({}, "inputs: Field required"),
    "an empty list of inputs": ({"inputs": []}, "text: one input is needed"),
    "another name": (text(name="question"), "text: one input is needed, 'text'; not 'question'"),
    "two inputs": ({"inputs": text()["inputs"] * 2}, "text: one input is needed"),
    "another datatype": (text(datatype="FP32", data=["1", "2"]), "text.datatype: the datatype is BYTES, not 'FP32'"),
    "numbers": (text(data=[1, 2]), "inputs[0].data[0]: Input should be a text, or a list of texts"),
    "too much data": (text(data=["a", "b", "c"]), "text.shape: the shape is [2], and there are 3 texts"),
    "no dimension": (text(shape=[], data=["a"]), "text.shape: the shape is [n] or [n, 1]"),
    "no rows": (text(shape=[0], data=[]), "text.shape: the shape is [n] or [n, 1]"),
    "a negative shape": (text(shape=[-2]), "text.shape: the shape is [n] or [n, 1]"),
    "two columns": (text(shape=[1, 2]), "text.shape: the shape is [n] or [n, 1]"),
    "three dimensions": (text(shape=[2, 1, 1]), "text.shape: the shape is [n] or [n, 1]"),
    "no data": (text(data=...), "text.data: either data or binary_data_size is needed"),
    "data twice": (text(parameters={"binary_data_size": 0}), "text.data: either data or binary_data_size"),
    "binary data that is not there": (
        text(data=..., parameters={"binary_data_size": 10}), "text.parameters.binary_data_size: 10 bytes are declared, and 0",
    ),
    "shared memory": (
        text(parameters={"shared_memory_region": "x"}), "inputs[0].parameters.shared_memory_region: this server does not",
    ),
    "an unknown output": ({**text(), "outputs": [{"name": "logits"}]}, "outputs[0].name: there is no output 'logits'"),
    "an output twice": ({**text(), "outputs": [{"name": "answer"}] * 2}, "outputs: an output is named twice"),
    "the classification extension": (
        {**text(), "outputs": [{"name": "probabilities", "parameters": {"classification": 1}}]},
        "outputs[0].parameters.classification: this server does not",
    ),
    "shared memory for an output": (
        {**text(), "outputs": [{"name": "answer", "parameters": {"shared_memory_region": "x"}}]},
        "outputs[0].parameters.shared_memory_region: this server does not",
    ),
    "a sequence": (with_parameters(sequence_id=7), "parameters.sequence_id: this server does not"),
    "a gate with a slip": (
        with_parameters(min_confidnce=0.9), "parameters: there is no parameter 'min_confidnce'; is 'min_confidence' meant?",
    ),
    "unknown parameters without end": (with_parameters(**{f"x{i}": i for i in range(33)}), "parameters: 33 unknown"),
    "a limit by another name": (with_parameters(max_tokens=9), "parameters: there is no parameter 'max_tokens'; is 'max_new"),
    "parameters as a list": (with_parameters() | {"parameters": []}, "parameters: Input should be a valid dictionary"),
    "a size of the wrong type": (
        text(data=..., parameters={"binary_data_size": "9"}), "inputs[0].parameters.binary_data_size: Input should be",
    ),
    "a wish of the wrong type": (
        {**text(), "outputs": [{"name": "answer", "parameters": {"binary_data": 1}}]},
        "outputs[0].parameters.binary_data: Input should be a valid boolean",
    ),
    "too many texts": (text(shape=[4], data=["a"] * 4), "text: 4 inputs; the limit is 3"),
    "a long text": (text(data=["a", "b" * 301]), "text[1]: a text of 301 characters; the limit is 300"),
    "a text beyond the context": (text(data=["a", "b" * (MAX_TOKENS + 1)]), "text[1]: "),
    "too many samples": (with_parameters(samples=65), "parameters.samples: "),
    "samples as text": (with_parameters(samples="16"), "parameters.samples: Input should be an integer from 0 to 64, or 'auto'"),
    "a gate out of range": (with_parameters(min_confidence=2), "parameters.min_confidence: "),
    "options that are no JSON": (with_parameters(options="yes"), "parameters.options: the text is not JSON"),
    "options that are no list": (with_parameters(options="7"), "parameters.options: Input should be a valid list"),
    "one option": (with_parameters(options='["a"]'), "text[0]: at least two options"),
    "support for an adapter": (with_parameters(support="[]"), "parameters.support: 'adp_"),
    "a fit for an adapter": (with_parameters(steps=2), "'adp_"),
}  # fmt: skip
REFUSED_BY_THE_BASE: dict[str, tuple[object, str]] = {
    "no support": (text(), f"parameters.support: {BASE!r} is the base model, which needs examples"),
    "empty support": (with_parameters(support="[]"), "parameters.support: the support set is empty"),
    "support that is no JSON": (with_parameters(support="[NaN]"), "parameters.support: the text is not JSON"),
    "an unknown field": (
        with_parameters(support='[{"input": "a", "output": "b", "x": 1}]'), "parameters.support[0].x: Extra",
    ),
    "too many examples": (with_parameters(support=json.dumps(SUPPORT * 3)), "parameters.support: 6 examples; the limit"),
    "too many steps": (with_parameters(support=json.dumps(SUPPORT), steps=9), "parameters.steps: 9 steps; the limit is 8"),
    "outputs of options without any": (
        {**with_parameters(support=json.dumps(SUPPORT)), "outputs": [{"name": "options"}]}, "outputs[0].name: there is no",
    ),
}  # fmt: skip


def check_refused(service: Service, body: object, model: str, message: str) -> None:
    before = len(service.server.worker.adapted), len(service.server.worker.predicted)
    response = service.post(body, model)
    assert response.status_code == 400, response.text
    assert list(response.json()) == ["error"]
    assert response.json()["error"].startswith(message)
    assert (len(service.server.worker.adapted), len(service.server.worker.predicted)) == before


@pytest.mark.parametrize("case", REFUSED)
def test_bad_requests_are_refused_before_any_model_work(service: Service, case: str) -> None:
    check_refused(service, REFUSED[case][0], service.adapter, REFUSED[case][1])


@pytest.mark.parametrize("case", REFUSED_BY_THE_BASE)
def test_the_base_model_refuses_bad_support(service: Service, case: str) -> None:
    check_refused(service, REFUSED_BY_THE_BASE[case][0], BASE, REFUSED_BY_THE_BASE[case][1])


def test_the_clients_errors_have_status_and_message(service: Service) -> None:
    with pytest.raises(InferenceServerException) as refused:
        service.infer(parameters={"samples": -1})
    assert refused.value.status() == "400"
    assert refused.value.message().startswith("parameters.samples: ")


def test_unknown_models_and_versions_are_not_found(service: Service) -> None:
    for model, version in (("adp_" + "0" * 32, ""), ("nothing", "1"), (service.adapter, "2"), (BASE, "2")):
        assert not service.client.is_model_ready(model, version)
        with pytest.raises(InferenceServerException, match=r"there is no (model|version|adapter)") as missing:
            service.client.get_model_metadata(model, version)
        assert missing.value.status() == "404"
        with pytest.raises(InferenceServerException, match=r"there is no (model|version|adapter)") as missing:
            service.infer(model, model_version=version)
        assert missing.value.status() == "404"


def test_an_adapter_of_another_posterior_is_not_ready(tmp_path: Path) -> None:
    adapter = Server(tmp_path).post("/v1/adapters", CREATE).json()["id"]
    server = Server(tmp_path, FakeWorker(served_model("e" * 64)))

    async def scenario(client: httpx.AsyncClient) -> None:
        response = await client.get(f"/v2/models/{adapter}/ready")
        assert response.status_code == 400
        assert response.json()["error"].startswith(f"model: adapter {adapter} was made with")

    server.run(scenario)


@pytest.mark.parametrize(
    ("content", "headers", "status", "message"),
    [
        (b"{", {}, 400, "the body is not JSON"),
        (b"{}", {"content-type": "text/plain"}, 415, "send the body as JSON"),
        (b"{}", {"content-encoding": "gzip"}, 415, "send the body as it is, without the content-encoding"),
        (b"{}", {"inference-header-content-length": "3"}, 400, "inference-header-content-length: it must be"),
        (b"{}", {"inference-header-content-length": "x"}, 400, "inference-header-content-length: it must be"),
        (b" " * (1 << 20) + b"{}", {}, 413, "the body is too large; the limit is 1048576 bytes"),
    ],
)
def test_bodies_are_read_within_limits(
    service: Service, content: bytes, headers: dict[str, str], status: int, message: str
) -> None:
    response = service.http.post(f"/v2/models/{service.adapter}/infer", content=content, headers=headers)
    assert response.status_code == status
    assert response.json()["error"].startswith(message)


@pytest.mark.parametrize("path", ["/v2/", "/v2/nothing", "/v2/models"])
def test_paths_below_v2_that_are_none_have_the_protocols_error(service: Service, path: str) -> None:
    response = service.http.get(path)
    assert response.status_code == 404
    assert response.json()["error"].startswith(f"there is no such route: {path!r}; ")


# ---- binary data ---------------------------------------------------------------------------------


def test_texts_as_binary_data_are_as_tritons_client_writes_and_reads_them() -> None:
    array = np.array(TEXTS, dtype=object)
    written = serialize_byte_tensor(array).item()
    assert encode("BYTES", TEXTS) == written
    assert decode_texts(written, "text") == TEXTS
    assert [t.decode() for t in deserialize_bytes_tensor(encode("BYTES", TEXTS))] == TEXTS
    numbers = [0.1, -1e300, 5e-324]
    assert np.frombuffer(encode("FP64", numbers), "<f8").tolist() == numbers


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (b"\1\0\0", "ends within a length"),
        (b"\1\0\0\0", "ends within a text"),
        (b"\1\0\0\0a\xff\xff\xff\xffb", "ends within a text"),
        (b"\1\0\0\0a\1\0\0\0\xff", "text 1 is not UTF-8"),
    ],
)
def test_binary_data_that_is_cut_or_no_text_is_refused(service: Service, tensor: bytes, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        decode_texts(tensor, "text")
    body = json.dumps(text(data=..., parameters={"binary_data_size": len(tensor)})).encode()
    response = service.http.post(
        f"/v2/models/{service.adapter}/infer",
        content=body + tensor,
        headers={
            "inference-header-content-length": str(len(body)),
            "content-type": "application/octet-stream",
        },
    )
    assert response.status_code == 400
    assert message in response.json()["error"]


def test_the_header_says_where_the_tensors_begin() -> None:
    assert split(b"{}abc", "2") == (b"{}", b"abc")
    assert split(b"{}", "2") == (b"{}", b"")
    assert split(b"{}", None) == (b"{}", b"")
    for length in ("3", "-1", "", "²", "9" * 5000):
        with pytest.raises(InvalidRequestError):
            split(b"{}", length)


def test_bytes_that_no_input_declares_are_refused(service: Service) -> None:
    body = json.dumps(text()).encode()
    response = service.http.post(
        f"/v2/models/{service.adapter}/infer",
        content=body + struct.pack("<I", 0),
        headers={"inference-header-content-length": str(len(body))},
    )
    assert response.status_code == 400
    assert "0 bytes are declared, and 4 follow" in response.json()["error"]


@pytest.mark.parametrize(
    ("native", "ours"),
    [
        ("inputs[2]", "text[2]"),
        ("inputs", "text"),
        ("support[3].output", "parameters.support[3].output"),
        ("gate.min_margin", "parameters.min_margin"),
        ("adapt.steps", "parameters.steps"),
        ("samples", "parameters.samples"),
        ("adapter_id", "model"),
        ("text.shape", "text.shape"),
        ("outputs[0].name", "outputs[0].name"),
    ],
)
def test_fields_have_the_names_that_the_caller_used(native: str, ours: str) -> None:
    assert field_name(native) == ours
