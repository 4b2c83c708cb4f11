"""The routes of the playground. All that the page needs lies in `static` and comes from here."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from fastapi import APIRouter, Request, Response
from starlette.exceptions import HTTPException

router = APIRouter(prefix="/playground", include_in_schema=False)

_PAGE = "index.html"
_MEDIA_TYPES = {
    "css": "text/css",
    "html": "text/html",
    "js": "text/javascript",
    "svg": "image/svg+xml",
    "txt": "text/plain",
}
# The page runs its own files only, and talks to this server only.
_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-cache",  # ask each time: the files change with the server
}


@dataclass(frozen=True)
class Asset:
    """A file of the page, with the digest by which browsers know whether theirs is the same."""

    content: bytes
    media_type: str
    etag: str


@cache
def assets() -> dict[str, Asset]:
    """Return the files of the page by name."""
    found = {}
    for file in (files("service.playground") / "static").iterdir():
        content = file.read_bytes()
        etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
        found[file.name] = Asset(content, _MEDIA_TYPES[file.name.rpartition(".")[2]], etag)
    return found


@router.get("")
def page(request: Request) -> Response:
    """Show the page."""
    return _answer(assets()[_PAGE], request)


@router.get("/{name}")
def asset(name: str, request: Request) -> Response:
    """Return a file of the page. Raises 404 for another."""
    found = assets().get(name)
    if found is None or name == _PAGE:
        raise HTTPException(404)
    return _answer(found, request)


def _answer(found: Asset, request: Request) -> Response:
    headers = {**_HEADERS, "etag": found.etag}
    if request.headers.get("if-none-match") == found.etag:
        return Response(None, 304, headers)
    return Response(found.content, 200, headers, found.media_type)
