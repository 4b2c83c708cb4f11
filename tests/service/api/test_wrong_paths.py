"""A path that no route has is answered with the route that is meant."""

import httpx
import pytest

from service.api.wrong_paths import explain
from tests.service.conftest import Server

ROUTES = ("/v1/predict", "/v1/adapters", "/v1/adapters/{adapter_id}", "/v1/chat/completions", "/livez")


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("/v1/predict/", "/v1/predict"),
        ("//v1/predict", "/v1/predict"),
        ("/V1/Predict", "/v1/predict"),
        ("/predict", "/v1/predict"),
        ("/api/v1/predict", "/v1/predict"),
        ("/v1/v1/chat/completions", "/v1/chat/completions"),
        ("/chat/completions", "/v1/chat/completions"),
        ("/openai/deployments/x/chat/completions", "/v1/chat/completions"),
        ("/adapters/adp_1", "/v1/adapters/{adapter_id}"),
        ("/v1/adapters/", "/v1/adapters"),
    ],
)
def test_the_route_that_is_meant_is_named(path: str, meant: str) -> None:
    assert explain(path, ROUTES) == f"there is no such route: {path!r}; do you mean {meant} ?"


@pytest.mark.parametrize(
    "path", ["/", "", "/health", "/v1", "/v1/embeddings", "/x\n\x1b[31m", "/" + "a" * 5000]
)
def test_where_none_is_meant_the_list_and_the_probes_are_named(path: str) -> None:
    message = explain(path, ROUTES)
    assert message.endswith("; /docs lists them; the probes are /livez and /readyz")
    assert message.isprintable()
    assert len(message) < 250


def test_every_surface_says_so_in_its_own_shape(server: Server) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        for path, meant in (
            ("/v1/predict/", "/v1/predict"),
            ("/v1/chat/completions/", "/v1/chat/completions"),
            ("/v1/classify/", "/v1/classify"),
            ("/v1/decisions/", "/v1/decisions"),
            ("/v1/systemone/", "/v1/systemone"),
            ("/v2/health/ready/", "/v2/health/ready"),
        ):
            response = await client.get(path)
            assert response.status_code == 404
            assert f"do you mean {meant} ?" in response.text

    server.run(scenario)


def test_a_request_line_may_have_the_whole_address(server: Server) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        for path, status in (("http://server/livez", 200), ("http://server", 404), ("https://x:1/nope", 404)):
            sent: list[dict[str, object]] = []

            async def send(message: dict[str, object], sent: list[dict[str, object]] = sent) -> None:
                sent.append(message)

            async def receive() -> dict[str, object]:
                return {"type": "http.request", "body": b""}

            scope = {"type": "http", "method": "GET", "path": path, "headers": [], "query_string": b""}
            await server.app(scope, receive, send)  # type: ignore[arg-type]
            assert sent[0]["status"] == status

    server.run(scenario)
