"""The keys file, the keyring that reads it again, quotas, and the audit log."""

from __future__ import annotations

import json
import stat
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from service.errors import ForbiddenError, QuotaExceededError, RateLimitedError, UnauthenticatedError
from service.principals import keyring, quotas
from service.principals.audit import AuditLog
from service.principals.keyring import KeyRing
from service.principals.keys_file import Key, Keys, NewKey, change_keys, digest_of, make_key, read_keys
from service.principals.quotas import Meter, check_room
from service.principals.records import Limits, Principal, Scope
from service.settings.values import SettingsError

PREDICT = frozenset({Scope.PREDICT})


@pytest.fixture(autouse=True)
def looks_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keyring, "LOOK_SECONDS", 0.0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def put(path: Path, *made: NewKey, limits: dict[str, Limits] | None = None) -> None:
    keys = Keys(keys=tuple(new.key for new in made), tenants=limits or {})
    change_keys(path, lambda _: (keys, None))


def test_only_digests_are_on_disk_and_the_file_is_for_its_user(path: Path) -> None:
    new = make_key("acme", PREDICT)
    put(path, new)
    secret = new.text.removeprefix(f"abmll-{new.key.id}-")
    assert len(secret) == 43  # 256 bits
    assert secret not in path.read_text()
    assert digest_of(new.text) in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [p.name for p in path.parent.iterdir() if p.name != "keys.json.lock"] == ["keys.json"]


def test_a_key_proves_its_tenant_and_scopes(path: Path) -> None:
    acme, other = make_key("acme", PREDICT), make_key("other", frozenset(Scope))
    limits = Limits(adapters=3)
    put(path, acme, other, limits={"acme": limits})
    ring = KeyRing(path)
    assert ring.authenticate(acme.text) == Principal("acme", acme.key.id, PREDICT, limits=limits)
    assert ring.authenticate(other.text) == Principal("other", other.key.id, frozenset(Scope))


def wrong_texts(right: str) -> list[str | None]:
    id, secret = right[6:14], right[15:]
    return [
        None, "", "abmll", right[:-1], right + "A", right[:-1] + ("A" if right[-1] != "A" else "B"),
        f"abmll-{'0' * 8}-{secret}", f"abmll-{id}-{'A' * 43}", right.upper(), "é" * 58, "\udcff",
    ]  # fmt: skip


def test_wrong_keys_are_refused_alike_and_not_repeated(path: Path) -> None:
    new = make_key("acme", PREDICT)
    put(path, new)
    ring = KeyRing(path)
    messages = set()
    for text in wrong_texts(new.text):
        with pytest.raises(UnauthenticatedError) as caught:
            ring.authenticate(text)
        messages.add(str(caught.value))
        assert new.text[15:] not in str(caught.value)
    assert len(messages) == 2  # none, and a wrong one


def test_each_wrong_key_takes_one_comparison_in_constant_time(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = make_key("acme", PREDICT)
    put(path, new)
    compared: list[tuple[int, int]] = []
    real = keyring.hmac.compare_digest

    def counted(a: str, b: str) -> bool:
        compared.append((len(a), len(b)))
        return real(a, b)

    monkeypatch.setattr(keyring.hmac, "compare_digest", counted)
    ring = KeyRing(path)
    texts = [text for text in wrong_texts(new.text) if text is not None]
    for text in texts:
        with pytest.raises(UnauthenticatedError):
            ring.authenticate(text)
    assert compared == [(64, 64)] * len(texts)


def test_revoked_and_expired_keys_end_without_a_restart(path: Path) -> None:
    now = datetime.now(UTC)
    kept, revoked = make_key("acme", PREDICT), make_key("acme", PREDICT)
    put(path, kept, revoked)
    ring = KeyRing(path)
    was = ring.authenticate(revoked.text)
    ended = revoked.key.model_copy(update={"revoked": now})
    put(path, kept, NewKey(ended, revoked.text))
    for refused in (lambda: ring.authenticate(revoked.text), lambda: ring.current(was)):
        with pytest.raises(UnauthenticatedError):
            refused()
    ring.current(ring.authenticate(kept.text))
    past = kept.key.model_copy(update={"expires": now - timedelta(seconds=1)})
    put(path, NewKey(past, kept.text))
    with pytest.raises(UnauthenticatedError):
        ring.authenticate(kept.text)


@pytest.mark.parametrize("content", ["{", '{"keys": [{"id": "x"}]}', '{"format_version": 2}', None])
def test_a_file_that_breaks_leaves_the_keys_and_one_that_never_was_is_refused(
    path: Path, content: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    new = make_key("acme", PREDICT)
    put(path, new)
    ring = KeyRing(path)
    path.unlink()
    if content is not None:
        path.write_text(content)
    ring.authenticate(new.text)
    assert "the keys that were read last stay" in caplog.text
    with pytest.raises(SettingsError, match=r"keys\.json"):
        KeyRing(path)


def test_a_file_that_could_not_be_read_once_is_read_again(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Else a key that was revoked at a bad moment would stay valid until the next change of the
    file.
    """
    new = make_key("acme", PREDICT)
    put(path, new)
    ring = KeyRing(path)
    revoked = NewKey(new.key.model_copy(update={"revoked": new.key.created}), new.text)
    put(path, revoked)

    def refused(_: Path) -> Keys:
        raise SettingsError("too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(keyring, "read_keys", refused)
        for _ in range(3):
            assert ring.authenticate(new.text).tenant == "acme"
    assert caplog.text.count("too many open files") == 1
    with pytest.raises(UnauthenticatedError):
        ring.authenticate(new.text)


def test_two_processes_that_add_keys_lose_none(path: Path) -> None:
    def add(_: int) -> Key:
        new = make_key("acme", PREDICT)
        change_keys(path, lambda old: (old.model_copy(update={"keys": (*old.keys, new.key)}), None))
        return new.key

    with ThreadPoolExecutor(8) as pool:
        added = list(pool.map(add, range(24)))
    assert {key.id for key in read_keys(path).keys} == {key.id for key in added}


@pytest.mark.parametrize("tenant", ["", "Acme", "a/b", "..", ".a", "-a", "a" * 65, "a\n"])
def test_names_of_tenants_are_names_of_folders(tenant: str) -> None:
    with pytest.raises(SettingsError, match="cannot be a tenant"):
        make_key(tenant, PREDICT)


def test_a_scope_that_is_lacking_is_named() -> None:
    with pytest.raises(ForbiddenError, match=r"scope `admin`.*: `predict`"):
        Principal("acme", "id", PREDICT).require(Scope.ADMIN)


def test_a_bucket_gives_its_size_at_once_and_then_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(quotas.time, "monotonic", lambda: now[0])
    meter, limits = Meter(), Limits(requests_per_minute=6, work_seconds_per_minute=30)
    for _ in range(6):
        meter.take_request(limits)
    with pytest.raises(RateLimitedError) as caught:
        meter.take_request(limits)
    assert caught.value.retry_after_seconds == 10
    assert meter.headers(limits) == {
        "x-ratelimit-limit-requests": "6",
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": "60s",
        "x-ratelimit-limit-units": "30",
        "x-ratelimit-remaining-units": "30",
        "x-ratelimit-reset-units": "0s",
    }
    now[0] = 10.0
    meter.take_request(limits)
    with pytest.raises(RateLimitedError):
        meter.take_request(limits)
    # One request may need more than a minute's worth: it takes a full bucket, and pays afterwards.
    meter.take_work(limits, 90)
    with pytest.raises(RateLimitedError) as caught:
        meter.take_work(limits, 1)
    assert caught.value.retry_after_seconds == 122  # 60 s over, and 1, at half a second a second
    now[0] += 122
    meter.take_work(limits, 1)


def test_without_limits_nothing_is_counted_or_shown() -> None:
    meter = Meter()
    for _ in range(1000):
        meter.take_request(Limits())
        meter.take_work(Limits(), 1e9)
    assert meter.headers(Limits()) == {}
    check_room(Limits(), 10**6, 10**12)


@pytest.mark.parametrize("limits", [Limits(adapters=2), Limits(stored_bytes=100)])
def test_a_full_tenant_is_told_which_limit(limits: Limits) -> None:
    check_room(limits, 1, 99)
    (name,) = limits.model_dump(exclude_none=True)
    with pytest.raises(QuotaExceededError, match=f"`{name}` in the keys file") as caught:
        check_room(limits, 2, 100)
    assert caught.value.retry_after_seconds is None


def test_the_audit_log_has_a_line_for_each_change(tmp_path: Path) -> None:
    path = tmp_path / "logs/audit.jsonl"
    for key_id in ("one", None):
        log = AuditLog(path)
        log.write(Principal("acme", key_id), "delete", "adp_0")
        log.close()
    first, second = map(json.loads, path.read_text().splitlines())
    assert (first["tenant"], first["key"], first["action"], first["id"]) == ("acme", "one", "delete", "adp_0")
    assert second["key"] is None
    assert datetime.fromisoformat(first["time"]).tzinfo is not None
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(SettingsError, match="audit log"):
        AuditLog(tmp_path)
