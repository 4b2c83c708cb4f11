"""Have tenants look for each other's adapters, lose keys, and guess ids and keys."""

from __future__ import annotations

import asyncio
import http.client
import json
import random
import secrets
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from scipy.stats import mannwhitneyu

from benchmarks.chaos.oracle import adapter_body, predict_body
from benchmarks.chaos.report import Report
from benchmarks.chaos.setup import Setup
from benchmarks.http_server import Server
from service.principals.keys_file import change_keys, make_key
from service.principals.records import Scope

GUESSES = 200  # a fault; ten times as many keys
REVOKED_SECONDS = 3.0
DISTINCT = 0.05
"""Largest excess over one half of the probability that one time of one kind is longer than one of
another.
"""
OWN = (
    ("GET", ""), ("DELETE", ""), ("POST", "/pin"), ("POST", "/unpin"), ("GET", "/progress"), ("POST", "/cancel"),
    ("GET", "/calibration"), ("DELETE", "/calibration"),
)  # fmt: skip


async def run(setup: Setup) -> Report:
    """Look at ids, listings, answers and times of two tenants."""
    guesses = GUESSES * setup.times
    report = Report(
        "Two tenants, one support; guessed ids and wrong keys",
        [
            f"Two tenants make an adapter of the same support. One of them tries the other's id on every path of an adapter, and "
            f"{guesses} guessed ids; {guesses} wrong keys are sent, as many with the id of a real key. Times are "
            "those of requests on one connection, of all kinds in random order. AUC is the probability that a time of the first "
            "is longer than one of the second; one half means that they cannot be told apart."
        ],
    )
    keys_file, audit = setup.folder / "keys.json", setup.folder / "audit.jsonl"
    keys = {tenant: add_key(keys_file, tenant) for tenant in ("acme", "globex", "initech")}
    options = ["--keys-file", str(keys_file), "--audit-log", str(audit)]
    with setup.server(options) as server:
        one, other = (
            httpx.Client(base_url=server.url, headers=bearer(keys[t]), timeout=120)
            for t in ("acme", "globex")
        )
        with one, other:
            foreign = look(report, one, other)
            times(report, server, keys["globex"], foreign, guesses, setup.random)
        await revoke(report, server, keys_file, keys["initech"])
        with httpx.Client(base_url=server.url, headers=bearer(keys["acme"]), timeout=120) as one:
            answer = one.post("/v1/predict", json=predict_body(foreign, 0)).status_code
            report.check("the owner's adapter is there afterwards", answer, answer == 200)
    texts = f"{setup.log()}\n{audit.read_text()}"
    shown = [tenant for tenant, key in keys.items() if key.rpartition("-")[2][:20] in texts]
    report.none("no key in the log or the audit log", shown)
    support = adapter_body(1)["support"][0]["input"]
    report.check(
        "no text of a support in the logs", "found" if support in texts else "none", support not in texts
    )
    return report


def add_key(path: Path, tenant: str) -> str:
    """Add a key of a tenant to the file, and return it."""
    made = make_key(tenant, frozenset(Scope), None, None)
    change_keys(path, lambda old: (old.model_copy(update={"keys": (*old.keys, made.key)}), None))
    return str(made.text)


def bearer(key: str) -> dict[str, str]:
    """Return the header with a key."""
    return {"authorization": f"Bearer {key}"}


def look(report: Report, one: httpx.Client, other: httpx.Client) -> str:
    """Compare what two tenants see; return the id of the first one's adapter."""
    made = [tenant.post("/v1/adapters", json=adapter_body(1)).raise_for_status() for tenant in (one, other)]
    mine, theirs = (answer.json()["id"] for answer in made)
    report.check("equal supports have different ids", f"{mine[:12]}, {theirs[:12]}", mine != theirs)
    caches = [f"{answer.status_code} {answer.json()['cache']}" for answer in made]
    report.check("the second tenant's adapter is made anew", ", ".join(caches), caches[0] == caches[1])
    one.put("/v1/names/secret", json={"adapter_id": mine}).raise_for_status()
    listed = [path for path in ("/v1/adapters", "/v1/names", "/v1/models", "/v1/files", "/v1/batches", "/v2/models/secret")
              if mine in (text := other.get(path).text) or '"secret"' in text]  # fmt: skip
    report.none("no listing of another tenant has it", listed)
    nobody = f"adp_{secrets.token_hex(16)}"
    told = []
    for method, path in OWN:
        answers = [other.request(method, f"/v1/adapters/{id}{path}") for id in (mine, nobody)]
        told += differences(f"{method} {path}", answers, (mine, nobody))
    for body in ({"adapter_id": mine}, {"model": mine}, {"model": "secret"}, {"model": "secret@1"}):
        unknown = {
            key: value.replace(mine, nobody).replace("secret", "absent") for key, value in body.items()
        }
        answers = [
            other.post("/v1/predict", json={**b, "inputs": ["x"], "options": ["a", "b"]})
            for b in (body, unknown)
        ]
        told += differences(f"predict {list(body)}", answers, ("secret", "absent", mine, nobody))
    report.none("another tenant's id is answered as one that nobody has, with 404", told)
    return str(mine)


def differences(what: str, answers: list[httpx.Response], ids: tuple[str, ...]) -> list[str]:
    """Return what tells two answers apart beside the id that was asked for."""
    texts = []
    for answer in answers:
        error = answer.json().get("error", {})
        text = json.dumps({**error, "request_id": ""}, sort_keys=True)
        for id in ids:
            text = text.replace(id, "ID")
        headers = sorted(name for name in answer.headers if name != "date")
        texts.append((answer.status_code, text, headers))
    if answers[0].status_code != 404 or texts[0] != texts[1]:
        return [f"{what}: {texts[0][0]} {texts[0][1][:90]} / {texts[1][0]} {texts[1][1][:90]}"]
    return []


def times(report: Report, server: Server, key: str, foreign: str, guesses: int, draws: random.Random) -> None:
    """Compare the times of ids and keys of two kinds, one request after the other."""
    prefix = "-".join(key.split("-")[:2])
    # The first two ask for one id again and again: file systems remember what they did not find.
    nobody = f"adp_{secrets.token_hex(16)}"
    kinds: dict[str, Callable[[], tuple[str, dict[str, str]]]] = {
        "another tenant's id": lambda: (f"/v1/adapters/{foreign}", bearer(key)),
        "an id that nobody has": lambda: (f"/v1/adapters/{nobody}", bearer(key)),
        "a wrong key with the id of a real one": lambda: ("/v1/adapters", bearer(f"{prefix}-{secrets.token_urlsafe(32)}")),
        "a wrong key": lambda: ("/v1/adapters", bearer(f"abmll-{secrets.token_hex(4)}-{secrets.token_urlsafe(32)}")),
        "a guessed id": lambda: (f"/v1/adapters/adp_{secrets.token_hex(16)}", bearer(key)),
    }  # fmt: skip
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    statuses: Counter[str] = Counter()
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=60)
    order = list(kinds.items())
    for _ in range(guesses):
        draws.shuffle(order)  # a request after one of the same kind is faster
        for kind, make in order:
            path, headers = make()
            began = time.perf_counter()
            connection.request("GET", path, headers=headers)
            answer = connection.getresponse()
            answer.read()
            seconds[kind].append(time.perf_counter() - began)
            statuses[f"{kind}: {answer.status}"] += 1
    connection.close()
    expected = {kind: 401 if "key" in kind else 404 for kind in kinds}
    other = {
        name: n for name, n in statuses.items() if name not in {f"{k}: {s}" for k, s in expected.items()}
    }
    report.none(f"{guesses} guesses of each kind: 404 for ids, 401 for keys", other)
    rows: list[list[object]] = []
    names = list(kinds)
    for first, second in (names[:2], names[2:4]):
        a, b = seconds[first], seconds[second]
        test = mannwhitneyu(a, b)
        auc, p = float(test.statistic) / (len(a) * len(b)), float(test.pvalue)
        rows.append([first, second, 1e3 * float(np.median(a)), 1e3 * float(np.median(b)), auc, p])
        held = abs(auc - 0.5) < DISTINCT or p > 1e-3
        report.check(f"times do not tell {first} from {second}", f"AUC {auc:.3f}, p {p:.2g}", held)
    report.table("Times:", ["first", "second", "median ms", "median ms", "AUC", "p (Mann-Whitney)"], rows)


async def revoke(report: Report, server: Server, keys_file: Path, key: str) -> None:
    """Revoke a key while it reads a stream, and look at what still comes."""
    abmll = str(Path(sys.executable).parent / "abmll")
    command = [abmll, "keys", "revoke", key.split("-")[1], "--keys-file", str(keys_file)]
    async with httpx.AsyncClient(base_url=server.url, headers=bearer(key), timeout=120) as client:
        adapter = (await client.post("/v1/adapters", json=adapter_body(2))).raise_for_status().json()["id"]
        body: dict[str, Any] = {**predict_body(adapter, 0, inputs=256, samples=64), "stream": True}
        streams = [asyncio.create_task(read_stream(client, body)) for _ in range(12)]
        await asyncio.sleep(0.3)
        await asyncio.to_thread(subprocess.run, command, check=True)
        revoked = time.monotonic()
        ends = await asyncio.gather(*streams)
        after = (await client.get("/v1/adapters")).status_code
    late = [
        f"{at - revoked:.1f} s" for at, ended in ends if ended == "whole" and at > revoked + REVOKED_SECONDS
    ]
    whole = sum(ended == "whole" for _, ended in ends)
    found = f"{len(ends) - whole} ended with an error, {whole} were over before; late: {late}"
    report.check("a revoked key's streams end", found, whole < len(ends) and not late)
    report.check("a revoked key is refused", after, after == 401)


async def read_stream(client: httpx.AsyncClient, body: dict[str, Any]) -> tuple[float, str]:
    """Read a stream to its end; return when that was, and whether it was whole."""
    text = ""
    try:
        async with client.stream("POST", "/v1/predict", json=body) as answer:
            async for piece in answer.aiter_text():
                text += piece
    except httpx.TransportError as error:
        return time.monotonic(), type(error).__name__
    return time.monotonic(), "whole" if "event: done" in text else text[-200:]
