"""A server with keys: who gets in, what a scope lets through, and what one tenant sees of another."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import cohere
import httpx
import openai
import pytest
import typesafe_sdk as typesafe
from starlette.routing import Route

from service.api import scopes
from service.api.app import COMPATIBLE, NATIVE
from service.playground import router as playground
from service.principals import keyring
from service.principals.keys_file import Keys, NewKey, change_keys, make_key
from service.principals.records import Limits, Scope
from tests.service.conftest import Server, until
from tests.service.engine.test_pricing import priced
from tests.service.fakes import FakeWorker

BASE = "fake-1b"
OPTIONS = ["yes", "no"]
SUPPORT = [{"input": f"input {i}", "output": OPTIONS[i % 2], "options": OPTIONS} for i in range(4)]
PREDICT = {"support": SUPPORT, "inputs": ["a", "b"], "samples": 4}
Work = Callable[[httpx.AsyncClient], Awaitable[None]]


class Guarded(Server):
    """A server with the keys of two tenants, and one key for each scope of the first."""

    def __init__(
        self, root: Path, limits: Limits | None = None, worker: FakeWorker | None = None, **settings: Any
    ) -> None:
        self.path = root / "keys.json"
        both = frozenset({Scope.PREDICT, Scope.ADAPT})
        self.one, self.two = make_key("one", both), make_key("two", both)
        self.scoped = {scope: make_key("one", frozenset({scope})) for scope in Scope}
        self.made = [self.one, self.two, *self.scoped.values()]
        self.limits = {"one": limits} if limits else {}
        self.write()
        super().__init__(root, worker, keys_file=self.path, **settings)

    def write(self, revoked: NewKey | None = None) -> None:
        keys = [
            new.key.model_copy(update={"revoked": new.key.created}) if new is revoked else new.key
            for new in self.made
        ]
        change_keys(self.path, lambda _: (Keys(keys=tuple(keys), tenants=self.limits), None))

    def play(self, work: Work) -> None:
        self.run(work)


def by(key: NewKey) -> dict[str, str]:
    return {"authorization": f"Bearer {key.text}"}


@pytest.fixture(autouse=True)
def looks_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keyring, "LOOK_SECONDS", 0.0)


@pytest.fixture
def guarded(tmp_path: Path) -> Guarded:
    return Guarded(tmp_path)


def routes(server: Server) -> list[tuple[str, str]]:
    """Return the method and the template of every route."""
    routers = [surface.router for surface in (*NATIVE, *COMPATIBLE)]
    own = [route for router in (*routers, playground) for route in router.routes]
    return [
        (method, route.path)
        for route in (*server.app.routes, *own)
        if isinstance(route, Route)
        for method in sorted((route.methods or set()) - {"HEAD"})
    ]


def filled(template: str) -> str:
    return (
        template.replace("{name:path}", "x").replace("{model_id:path}", "x").replace("{adapter_id}", "adp_00000000")
    ).replace("{version}", "1").replace("{name}", "x")  # fmt: skip


OPEN = {
    "/livez", "/readyz", "/v2/health/live", "/v2/health/ready", "/openapi.json", "/docs", "/redoc",
    "/docs/oauth2-redirect", "/playground", "/playground/{name}",
}  # fmt: skip


def test_every_route_but_the_open_ones_refuses_without_a_key(guarded: Guarded) -> None:
    async def work(client: httpx.AsyncClient) -> None:
        for method, template in routes(guarded):
            answer = await client.request(method, filled(template), content=b"{no json")
            if template in OPEN:
                assert answer.status_code != 401, template
            else:
                assert answer.status_code == 401, (method, template)
                assert answer.headers["www-authenticate"].startswith("Bearer")
        for path in (
            "/",
            "/nothing",
            "/v1",
            "/v1/v1/predict",
            "/livez/x",
            "/playgroundx",
            "//livez/../v1/models",
        ):
            assert (await client.get(path)).status_code == 401, path

    guarded.play(work)
    assert len(routes(guarded)) > 40


def test_a_new_route_needs_an_entry_or_the_scope_admin(guarded: Guarded) -> None:
    """Each route that changes something has been given a scope, or is of the whole server."""
    of_the_server = {"/v1/adapters/{adapter_id}/pin", "/v1/adapters/{adapter_id}/unpin"}
    unlisted = {
        template
        for method, template in routes(guarded)
        if method != "GET" and scopes.scope_of(method, template) is Scope.ADMIN
    }
    assert unlisted == of_the_server
    templates = {template for _, template in routes(guarded)}
    assert templates >= scopes._PREDICT | scopes._ADAPT | scopes._ADMIN


BODIES: Mapping[str, Mapping[str, Any]] = {
    "/v1/adapters": {"support": SUPPORT},
    "/v1/predict": PREDICT,
    "/v1/chat/completions": {
        "model": BASE, "messages": [{"role": "user", "content": "a"}], "abmll": {"support": SUPPORT},
    },
    "/v1/classify": {
        "inputs": ["a"],
        "examples": [{"text": f"{n}", "label": OPTIONS[n % 2]} for n in range(4)],
    },
}  # fmt: skip


@pytest.mark.parametrize("path", BODIES)
def test_examples_in_a_request_need_the_scope_adapt(guarded: Guarded, path: str) -> None:
    async def work(client: httpx.AsyncClient) -> None:
        answer = await client.post(path, json=BODIES[path], headers=by(guarded.scoped[Scope.PREDICT]))
        assert answer.status_code == 403
        assert answer.headers["www-authenticate"] == 'Bearer realm="abmll", error="insufficient_scope"'
        assert "`adapt`" in answer.text

    guarded.play(work)
    assert guarded.worker.adapted == []


def test_scopes_let_through_what_they_are_for(guarded: Guarded) -> None:
    async def work(client: httpx.AsyncClient) -> None:
        made = await client.post("/v1/adapters", json=BODIES["/v1/adapters"], headers=by(guarded.one))
        id = made.json()["id"]
        path = f"/v1/adapters/{id}"
        asked = {"adapter_id": id, "inputs": ["a"]}
        allowed = {
            ("POST", "/v1/predict"): {Scope.PREDICT},
            ("GET", "/v1/adapters"): set(Scope),
            ("GET", "/v1/limits"): set(Scope),
            ("GET", "/v1/workers"): {Scope.ADMIN},
            ("GET", "/metrics"): {Scope.ADMIN},
            ("POST", f"{path}/pin"): {Scope.ADMIN},
            ("PUT", "/v1/names/tickets"): {Scope.ADAPT},
            ("DELETE", "/v1/names/tickets"): {Scope.ADAPT},
        }
        for (method, url), may in allowed.items():
            for scope, key in guarded.scoped.items():
                body = asked if url == "/v1/predict" else {"adapter_id": id} if method == "PUT" else None
                answer = await client.request(method, url, json=body, headers=by(key))
                assert answer.status_code == (200 if scope in may else 403), (method, url, scope)

    guarded.play(work)


def test_a_key_comes_in_either_header_and_in_no_other_way(guarded: Guarded) -> None:
    async def work(client: httpx.AsyncClient) -> None:
        text = guarded.one.text
        for headers, status in (
            ({"authorization": f"bearer  {text} "}, 200),
            ({"x-api-key": text}, 200),
            ({"authorization": "Basic YTpi", "x-api-key": text}, 200),
            ({"authorization": f"Bearer {text}x", "x-api-key": text}, 401),
            ({"authorization": text}, 401),
            ({"authorization": "Bearer"}, 401),
            ({"cookie": f"key={text}"}, 401),
        ):
            assert (await client.get("/v1/models", headers=headers)).status_code == status, headers
        assert (await client.get("/v1/models", params={"api_key": text})).status_code == 401

    guarded.play(work)


def test_tenants_see_nothing_of_each_other_on_any_surface(guarded: Guarded) -> None:
    async def work(client: httpx.AsyncClient) -> None:
        one, two = by(guarded.one), by(guarded.two)
        id = (await client.post("/v1/predict", json=PREDICT, headers=one)).json()["adapter_id"]
        await client.put("/v1/names/tickets", json={"adapter_id": id}, headers=one)
        unknown = f"adp_{'0' * 32}"
        for model, nobodys in ((id, unknown), ("tickets", "nothing"), ("tickets@1", "nothing@1")):
            for method, url, body in (
                ("POST", "/v1/predict", {"model": "M", "inputs": ["a"]}),
                ("POST", "/v1/decide", {"model": "M", "inputs": ["a"], "questions": [{"name": "q", "options": OPTIONS}]}),
                ("POST", "/v1/chat/completions", {"model": "M", "messages": [{"role": "user", "content": "a"}]}),
                ("POST", "/v1/classify", {"model": "M", "inputs": ["a"]}),
                ("GET", "/v1/models/M", None),
                ("GET", "/v2/models/M", None),
                ("GET", "/v2/models/M/ready", None),
                ("GET", "/v1/names/M", None),
                ("GET", "/v1/adapters/M", None),
                ("GET", "/v1/adapters/M/calibration", None),
                ("DELETE", "/v1/adapters/M", None),
                ("DELETE", "/v1/names/M", None),
                ("POST", "/v1/adapters/M/diagnose", None),
                ("POST", "/v1/adapters/M/calibrate", {"examples": [{"input": "a", "output": "yes"}]}),
                ("POST", "/v1/adapters/M/feedback", {"feedback": [{"prediction_id": "prd_0", "label": "yes"}]}),
            ):  # fmt: skip
                answers = []
                for name in (model, nobodys):
                    filled_in = json.loads(json.dumps(body).replace('"M"', f'"{name}"'))
                    answer = await client.request(
                        method,
                        url.replace("/M", f"/{name}"),
                        json=filled_in,
                        headers={**two, "x-request-id": "same"},
                    )
                    assert answer.status_code in (404, 422), (method, url, name, answer.text)
                    answers.append((answer.status_code, answer.text.replace(name, "M")))
                # what is another's looks like what is nobody's
                assert answers[0] == answers[1], (method, url, model)
        for url in ("/v1/adapters", "/v1/names", "/v1/models"):
            assert id not in (await client.get(url, headers=two)).text
            assert "tickets" not in (await client.get(url, headers=two)).text
            assert id in (await client.get(url, headers=one)).text
        mine = (await client.post("/v1/predict", json=PREDICT, headers=two)).json()
        assert (mine["cache"], mine["adapter_id"] == id) == ("miss", False)

    guarded.play(work)


def test_a_key_that_is_revoked_ends_its_stream_at_the_next_event(guarded: Guarded) -> None:
    async def work(client: httpx.AsyncClient) -> None:
        guarded.worker.predict_gate.clear()
        body = {**PREDICT, "stream": True}
        pending = asyncio.create_task(client.post("/v1/predict", json=body, headers=by(guarded.one)))
        await until(lambda: bool(guarded.worker.predicted))
        guarded.write(revoked=guarded.one)
        guarded.worker.predict_gate.set()
        answer = await pending
        events = [line for line in answer.text.splitlines() if line.startswith("event: ")]
        assert answer.status_code == 200
        assert events[-1] == "event: error"
        assert "invalid_api_key" in answer.text
        assert "event: done" not in events
        assert "event: prediction" not in events
        assert (await client.get("/v1/models", headers=by(guarded.one))).status_code == 401
        assert (await client.get("/v1/models", headers=by(guarded.two))).status_code == 200

    guarded.play(work)


SHAPES = {
    "/v1/predict": lambda body: body["error"]["code"],
    "/v1/models": lambda body: body["error"]["code"],
    "/v1/decisions": lambda body: body["error"]["code"],
    "/v1/systemone": lambda body: body["detail"],
    "/v1/classify": lambda body: body["message"],
    "/v2": lambda body: body["error"],
}


@pytest.mark.parametrize("path", SHAPES)
def test_each_surface_refuses_in_its_own_shape(guarded: Guarded, path: str) -> None:
    async def work(client: httpx.AsyncClient) -> None:
        answer = await client.request("GET" if path in ("/v1/models", "/v2") else "POST", path)
        assert answer.status_code == 401
        said = SHAPES[path](answer.json())
        assert said == "invalid_api_key" or "x-api-key" in said

    guarded.play(work)


def test_the_official_clients_know_a_wrong_key_and_use_a_right_one(guarded: Guarded) -> None:
    with guarded.listening() as running:
        wrong, right = guarded.one.text + "x", guarded.one.text
        with openai.OpenAI(base_url=f"{running.url}/v1", api_key=wrong) as client:
            with pytest.raises(openai.AuthenticationError) as refused:
                client.models.list()
            assert refused.value.code == "invalid_api_key"
        with openai.OpenAI(base_url=f"{running.url}/v1", api_key=right) as client:
            assert [model.id for model in client.models.list()] == [BASE]
        with (
            typesafe.TypeSafeClient(api_key=wrong, base_url=running.url, model=BASE) as client,
            pytest.raises(typesafe.TypeSafeAuthenticationError),
        ):
            client.models.list()
        with typesafe.TypeSafeClient(api_key=right, base_url=running.url, model=BASE) as client:
            assert client.models.list()
        examples = [cohere.ClassifyExample(text=f"{n}", label=OPTIONS[n % 2]) for n in range(4)]
        with httpx.Client() as http:
            one, two = (cohere.Client(key, base_url=running.url, httpx_client=http) for key in (wrong, right))
            with pytest.raises(cohere.UnauthorizedError):
                one.classify(inputs=["a"], examples=examples)
            found = two.classify(inputs=["a"], examples=examples)
        assert found.classifications[0].prediction in OPTIONS


def test_limits_are_told_and_kept(tmp_path: Path) -> None:
    guarded = Guarded(tmp_path, Limits(requests_per_minute=3, adapters=1))

    async def work(client: httpx.AsyncClient) -> None:
        first = await client.post("/v1/predict", json=PREDICT, headers=by(guarded.one))
        assert first.status_code == 200
        assert first.headers["x-ratelimit-limit-requests"] == "3"
        assert first.headers["x-ratelimit-remaining-requests"] == "2"
        other = {**PREDICT, "support": SUPPORT[:2]}
        full = await client.post("/v1/predict", json=other, headers=by(guarded.one))
        assert (full.status_code, full.json()["error"]["code"]) == (429, "quota_exceeded")
        assert full.headers["x-should-retry"] == "false"
        # what is there goes on
        assert (await client.post("/v1/predict", json=PREDICT, headers=by(guarded.one))).status_code == 200
        many = await client.get("/v1/models", headers=by(guarded.one))
        assert (many.status_code, many.json()["error"]["code"]) == (429, "rate_limit_exceeded")
        assert many.json()["error"]["type"] == "rate_limit_error"
        assert 1 <= int(many.headers["retry-after"]) <= 20
        assert many.headers["x-ratelimit-remaining-requests"] == "0"
        others = await client.get("/v1/models", headers=by(guarded.two))
        assert others.status_code == 200
        assert not any(name.startswith("x-ratelimit") for name in others.headers)

    guarded.play(work)


def test_work_is_limited_by_its_price(tmp_path: Path) -> None:
    guarded = Guarded(
        tmp_path, Limits(work_seconds_per_minute=1e-6), FakeWorker(priced()), deadline_seconds=1e6
    )
    head = by(guarded.one)

    async def work(client: httpx.AsyncClient) -> None:
        made = await client.post("/v1/predict", json=PREDICT, headers=head)
        assert made.status_code == 200
        assert made.headers["x-ratelimit-limit-units"] == "1e-06"
        assert made.headers["x-ratelimit-remaining-units"] == "0"
        id = made.json()["adapter_id"]
        for url, body in (
            ("/v1/predict", PREDICT),
            ("/v1/adapters", {"support": SUPPORT[:3]}),
            (f"/v1/adapters/{id}/diagnose", {}),
            (f"/v1/adapters/{id}/calibrate", {"examples": [{"input": "new", "output": "yes"}]}),
        ):
            answer = await client.post(url, json=body, headers=head)
            assert (answer.status_code, answer.json()["error"]["code"]) == (429, "rate_limited"), url
            assert int(answer.headers["retry-after"]) >= 1
        assert (await client.post("/v1/adapters", json={"support": SUPPORT}, headers=head)).status_code == 200
        other = await client.post("/v1/predict", json=PREDICT, headers=by(guarded.two))
        assert other.status_code == 200

    guarded.play(work)
    assert len(guarded.worker.adapted) == 2


def test_changes_are_audited_without_a_text_of_a_user(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    guarded = Guarded(tmp_path, audit_log=path)

    async def work(client: httpx.AsyncClient) -> None:
        head = by(guarded.one)
        id = (await client.post("/v1/predict", json=PREDICT, headers=head)).json()["adapter_id"]
        await client.post("/v1/predict", json=PREDICT, headers=head)  # makes nothing
        await client.put("/v1/names/tickets", json={"adapter_id": id}, headers=head)
        rows = [{"input": f"new {n}", "output": "yes"} for n in range(3)]
        await client.post(f"/v1/adapters/{id}/calibrate", json={"examples": rows}, headers=head)
        await client.delete("/v1/names/tickets", headers=head)
        await client.delete(f"/v1/adapters/{id}", headers=head)
        await client.delete(f"/v1/adapters/{id}", headers=head)  # not there

    guarded.play(work)
    rows = list(map(json.loads, path.read_text().splitlines()))
    assert [(row["action"], row.get("detail")) for row in rows] == [
        ("adapt", None), ("name", "put"), ("gate", "calibrate"), ("name", "delete"), ("delete", None),
    ]  # fmt: skip
    assert {(row["tenant"], row["key"]) for row in rows} == {("one", guarded.one.key.id)}
    assert "input" not in path.read_text()


def test_keys_are_in_no_log_and_no_answer(guarded: Guarded, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    secret = guarded.one.text[15:]
    seen = []

    async def work(client: httpx.AsyncClient) -> None:
        for headers in (by(guarded.one), {"x-api-key": guarded.one.text + "x"}):
            for url in ("/v1/models", "/nothing", "/metrics"):
                answer = await client.get(url, headers=headers)
                seen.append(answer.text + str(answer.headers))

    guarded.play(work)
    own = [record.getMessage() for record in caplog.records if not record.name.startswith("http")]
    assert secret not in "".join([*own, *seen])


def test_metrics_are_open_where_the_setting_says_so(tmp_path: Path) -> None:
    guarded = Guarded(tmp_path, open_metrics=True)

    async def work(client: httpx.AsyncClient) -> None:
        assert (await client.get("/metrics")).status_code == 200
        assert (await client.head("/metrics")).status_code == 200

    guarded.play(work)


def test_the_description_names_keys_where_there_are_some(guarded: Guarded, tmp_path: Path) -> None:
    server = Server(tmp_path / "other")

    def schemes(application: Server) -> object:
        return application.app.openapi().get("components", {}).get("securitySchemes")

    assert schemes(server) is None
    assert schemes(guarded) == {
        "HTTPBearer": {
            "type": "http",
            "scheme": "bearer",
            "description": "A key, as `abmll keys add` makes it.",
        }
    }
