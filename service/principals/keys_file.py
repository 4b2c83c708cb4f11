"""The keys file: keys of tenants, of which only digests are on disk, and what each tenant may use.

    {"format_version": 1,
     "tenants": {"acme": {"requests_per_minute": 600}},
     "keys": [{"id": "1f0c9a3b", "tenant": "acme", "digest": "9d5e...", "scopes": ["predict"],
               "created": "2026-01-31T12:00:00+00:00", "expires": null, "revoked": null, "note": null}]}

A key is `abmll-`, its id, `-` and 256 random bits. So SHA-256 is enough to keep it: slow hashes are
for passwords, which can be guessed, and would make each request slow. The id finds the digest.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, TypeVar

from filelock import FileLock
from pydantic import AwareDatetime, Field, ValidationError, model_validator

from model_store.storage import refusal_is_an_error, write_private
from service.principals.records import TENANT, Limits, Scope, Strict
from service.settings.values import SettingsError

T = TypeVar("T")
FORMAT_VERSION = 1
_KEY = re.compile(r"abmll-([0-9a-f]{8})-[A-Za-z0-9_-]{43}")


class Key(Strict):
    """One key: its public id, whose it is, what it may do, and until when. Times are in UTC."""

    id: Annotated[str, Field(pattern="^[0-9a-f]{8}$")]
    tenant: Annotated[str, Field(pattern=f"^{TENANT.pattern}$")]
    digest: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    scopes: Annotated[frozenset[Scope], Field(min_length=1)]
    created: AwareDatetime
    expires: AwareDatetime | None = None
    revoked: AwareDatetime | None = None
    note: Annotated[str, Field(max_length=500)] | None = None

    def is_valid(self, now: datetime) -> bool:
        """Return whether the key is neither revoked nor expired at `now`."""
        return self.revoked is None and (self.expires is None or now < self.expires)


class Keys(Strict):
    """The content of a keys file."""

    format_version: int = FORMAT_VERSION
    tenants: dict[Annotated[str, Field(pattern=f"^{TENANT.pattern}$")], Limits] = Field(default_factory=dict)
    keys: tuple[Key, ...] = ()

    @model_validator(mode="after")
    def _checked(self) -> Keys:
        if self.format_version != FORMAT_VERSION:
            raise ValueError(f"format {self.format_version} is not the one read here, {FORMAT_VERSION}")
        ids = [key.id for key in self.keys]
        if len(ids) != len(set(ids)):
            raise ValueError("two keys have the same id")
        return self


@dataclass(frozen=True)
class NewKey:
    """A key that was just made, with its text, which is nowhere else."""

    key: Key
    text: str


def digest_of(text: str) -> str:
    """Return what is kept of a key: its SHA-256, in hexadecimal."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def id_of(text: str) -> str | None:
    """Return the id in the text of a key; None for a text that cannot be a key."""
    found = _KEY.fullmatch(text)
    return found[1] if found else None


def check_tenant(tenant: str) -> None:
    """Raise `SettingsError` for a text that cannot be the name of a tenant."""
    if not TENANT.fullmatch(tenant):
        raise SettingsError(
            f"{tenant!r} cannot be a tenant: it has 1 to 64 of a-z, 0-9, '_' and '-', and does not begin with "
            "'_' or '-'"
        )


def make_key(
    tenant: str, scopes: frozenset[Scope], expires: datetime | None = None, note: str | None = None
) -> NewKey:
    """Return a new random key. Raises `SettingsError` for what no key can have."""
    check_tenant(tenant)
    id = secrets.token_hex(4)
    text = f"abmll-{id}-{secrets.token_urlsafe(32)}"
    now = datetime.now(UTC).replace(microsecond=0)
    if expires is not None and expires <= now:
        raise SettingsError("the key would have expired already")
    fields = {"id": id, "tenant": tenant, "digest": digest_of(text), "scopes": scopes}
    try:
        key = Key.model_validate({**fields, "created": now, "expires": expires, "note": note})
    except ValidationError as error:
        raise SettingsError(f"the key: {_first(error)}") from error
    return NewKey(key, text)


def read_keys(path: Path) -> Keys:
    """Read a keys file. Raises `SettingsError` where there is none, or it is not one."""
    try:
        return Keys.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise SettingsError(
            f"there is no keys file {path}: `abmll keys add TENANT --keys-file {path}` makes one"
        ) from None
    except OSError as error:
        raise SettingsError(f"the keys file {path} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        raise SettingsError(f"the keys file {path} is not as it should be: {_first(error)}") from None


def change_keys(path: Path, change: Callable[[Keys], tuple[Keys, T]]) -> T:
    """Replace the keys file by what `change` makes of it, and return the other thing that it
    returns.

    An absent file counts as an empty one. Changes of several processes come one after the other.
    The file is for its user alone (mode 600), and whole at any time. Raises `SettingsError`, and
    `StoreError` where the folder cannot be written to.
    """
    with refusal_is_an_error("the keys file"):
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f"{path.name}.lock"), mode=0o600):
            keys, result = change(read_keys(path) if path.exists() else Keys())
            write_private(path, f"{keys.model_dump_json(indent=1)}\n".encode())
    return result


def _first(error: ValidationError) -> str:
    """Return the first thing that is wrong, without the value: it may be a secret."""
    first = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(map(str, first["loc"]))
    return f"{place}: {first['msg']}" if place else str(first["msg"])
