"""A command's work on a server: the one that `--url` names, or that of the data folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Annotated, Any, TypeAlias, TypeVar

import httpx
import typer
from pydantic import BaseModel

from abmll.errors import AbmllError
from model_store.errors import StoreInUseError
from service.address_file import running_server
from service.cli.serve import is_here
from service.errors import ServiceError
from service.settings import Settings
from service.settings.values import ENV_PREFIX

T = TypeVar("T")
ModelT = TypeVar("ModelT", bound=BaseModel)

Url: TypeAlias = Annotated[
    str | None,
    typer.Option(
        help="Address of a server that does the work, by its own settings, instead of this process. By default "
        "the one that uses the data folder, if one does."
    ),
]
ApiKey: TypeAlias = Annotated[
    str | None,
    typer.Option(envvar="ABMLL_API_KEY", show_envvar=True, help="Key of the server, if it asks for one."),
]

_TRIES = 8
_MAX_WAIT_SECONDS = 60
_BUSY = {429, 502, 503, 504}


class Remote:
    """A server at `url`. Threads may share it."""

    def __init__(self, url: str, api_key: str | None, *, timeout_seconds: float = 600) -> None:
        """Connect at the first request. Raises `AbmllError` for what is no address."""
        self.url = url.rstrip("/")
        self._reached = False
        try:
            direct = httpx.HTTPTransport() if is_here(url) else None  # without a proxy
            self._http = httpx.Client(
                base_url=self.url,
                timeout=timeout_seconds,
                transport=direct,
                headers={"authorization": f"Bearer {api_key}"} if api_key else {},
            )
        except (httpx.InvalidURL, ImportError, ValueError) as error:
            raise AbmllError(f"{url!r} is no address of a server, such as http://127.0.0.1:8000") from error

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def request(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, *, tries: int = _TRIES
    ) -> Any:
        """Return the answer as plain values. What may pass (429, 502 to 504) is tried again.

        So is a lost connection, where the server was reached before.

        Raises `ServiceError` with what the server says and the field that it names, and
        `AbmllError` where there is no answer.
        """
        for attempt in range(1, tries + 1):
            try:
                response = self._http.request(method, path, json=body)
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                if attempt == tries or not self._reached or not isinstance(error, httpx.TransportError):
                    raise AbmllError(f"no answer from {self.url}: {error!r}") from error
                time.sleep(attempt)
                continue
            self._reached = True
            if response.is_success:
                return _json(response)
            if response.status_code not in _BUSY or attempt == tries:
                raise _refusal(response)
            given = response.headers.get("retry-after", "")
            time.sleep(min(_MAX_WAIT_SECONDS, int(given) if given.isdecimal() else attempt))
        raise AssertionError

    def page(self, path: str) -> None:
        """Look for a page, at once. Raises `AbmllError` where the server does not answer with it."""
        try:
            response = self._http.get(path, follow_redirects=True)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise AbmllError(
                f"no server at {self.url}: start one by `abmll serve`, or name one by --url"
            ) from error
        if not response.is_success:
            raise AbmllError(f"the server at {self.url} has no {path}: status {response.status_code}")


def _json(response: httpx.Response) -> Any:
    try:
        return response.json()
    except ValueError as error:
        raise AbmllError(f"{response.url} did not answer in JSON: is it an ABMLL server?") from error


def _refusal(response: httpx.Response) -> ServiceError:
    try:
        refused = response.json()["error"]
        message, param = str(refused["message"]), refused.get("param")
    except (ValueError, KeyError, TypeError, AttributeError):
        message, param = f"status {response.status_code}", None
    hint = ""
    if response.status_code == httpx.codes.UNAUTHORIZED:
        hint = " (give a key by --api-key or ABMLL_API_KEY)"
    return ServiceError(f"the server refused: {message}{hint}", param)


def here_or_there(
    settings: Settings,
    url: str | None,
    api_key: str | None,
    here: Callable[[], T],
    there: Callable[[Remote], T],
) -> T:
    """Return the result of `here`, or of `there` on the server that does the work.

    That is the server at `url`, else the one that holds the lock of the data folder. Raises
    `StoreInUseError` where something else holds it, `AbmllError` where that server has another
    model than `settings`, and what the two functions raise.
    """
    if url is None:
        try:
            return here()
        except StoreInUseError as error:
            url = _server_of(settings, error)
    remote = Remote(url, api_key)
    try:
        return there(remote)
    finally:
        remote.close()


def _server_of(settings: Settings, in_use: StoreInUseError) -> str:
    server = running_server(settings.data_dir)
    if server is None:
        raise in_use
    if different := server.differs(settings):
        wanted = ", ".join(
            f"{name} {server.settings.get(name)} and not {getattr(settings, name)}" for name in different
        )
        raise AbmllError(
            f"the server at {server.url} uses the data folder, with {wanted}: give the same by "
            f"--{different[0].replace('_', '-')} or {ENV_PREFIX}{different[0].upper()}, or another --data-dir"
        ) from in_use
    return server.url


def read(model: type[ModelT], found: Any) -> dict[str, Any]:
    """Return an answer of the server as one of this process prints: the fields of `model`, each
    there.

    Raises `AbmllError` where it is not such an answer.
    """
    try:
        return model.model_validate(found, strict=False, extra="ignore").model_dump(mode="json")
    except ValueError as error:
        raise AbmllError(
            f"the server answered with something else than a {model.__name__}: {error}"
        ) from error
