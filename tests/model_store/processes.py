"""Functions that tests run in other processes; the fork server imports this module once."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from itertools import cycle
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

import model_store.adapters.store
import model_store.pretrained.bases
from abmll.decoder.layout import Site, flat_size
from abmll.posterior.posteriors import TaskPosterior
from abmll.text.tasks import Example
from model_store.adapters.gate_journals import GateJournals
from model_store.adapters.manifest import AdapterManifest, SupportRecord
from model_store.adapters.names import NameStore
from model_store.adapters.opening import Stores, open_stores
from model_store.adapters.store import AdapterStore, StoredAdapter
from model_store.pretrained.identity import BaseIdentity
from tests.tiny import make_config

CONFIG = make_config(rank=2, modules=("q",))
SITES = (Site(0, "q", 64, 64), Site(1, "q", 64, 64))


def adapter(number: int) -> StoredAdapter:
    """Return the `number`-th adapter, the same in every process."""
    generator = torch.Generator().manual_seed(number)
    values = torch.randn(flat_size(SITES, CONFIG.layout.rank), generator=generator)
    support = [
        Example(f"film {number}", "good", ("good", "bad")),
        Example("a dull story", "bad", ("good", "bad")),
    ]
    manifest = AdapterManifest(
        id=f"adp_{number:016x}",
        created="2026-01-01T00:00:00+00:00",
        base=BaseIdentity("tiny", "sha256:0123", "int8"),
        posterior_id="tiny-1",
        posterior_digest="4567",
        settings={"steps": 6, "learning_rate": 0.001},
        seed=number,
        support=SupportRecord(tuple(support), 12, ("good", "bad"), "89ab"),
        losses=(1.5, 0.25),
        warnings=("the input 'film' has two labels",),
        config=CONFIG,
        sites=SITES,
    )
    return StoredAdapter(manifest, TaskPosterior(CONFIG, SITES, values))


def put_forever(root: Path, first: int, acknowledge: Connection) -> None:
    """Put adapters `first`, `first` + 1, ... and send each number when its `put` has returned."""
    store = AdapterStore(root)
    number = first
    while True:
        store.put(adapter(number))
        acknowledge.send(number)
        number += 1


def append_forever(root: Path, adapter_id: str, acknowledge: Connection) -> None:
    """Append records 0, 1, ... to the adapter's journal.

    Send each number when its `append` has returned.
    """
    store = GateJournals(root)
    number = 0
    while True:
        store.append(adapter_id, {"value": number})
        acknowledge.send(number)
        number += 1


def put_names_forever(root: Path, name: str, adapters: Sequence[str], acknowledge: Connection) -> None:
    """Point the name to one adapter after the other, and send each version when `put` has returned."""
    store = NameStore(root)
    for adapter_id in cycle(adapters):
        acknowledge.send(store.put(name, adapter_id).last)


def hang_before_sealing(root: Path, number: int, acknowledge: Connection) -> None:
    """Stop in the middle of a put, with the tensors and the manifest written, and say so."""

    def hang(folder: Path) -> None:
        acknowledge.send(sorted(path.name for path in folder.iterdir()))
        acknowledge.recv()

    model_store.adapters.store.seal = hang
    AdapterStore(root).put(adapter(number))


def open_shared(root: Path, url: str, environment: Mapping[str, str]) -> Stores:
    os.environ.update(environment)
    return open_stores(root, url, timeout_seconds=10)


def hang_before_the_record(
    root: Path, url: str, environment: Mapping[str, str], number: int, acknowledge: Connection
) -> None:
    """Stop in the middle of a put into a shared store, with the tensors written, and say so."""
    stores = open_shared(root, url, environment)
    objects: Any = stores.objects

    def hang(key: str, data: bytes) -> None:
        acknowledge.send(key)
        acknowledge.recv()

    objects.create = hang
    stores.adapters.put(adapter(number))


def share_forever(
    root: Path, url: str, environment: Mapping[str, str], adapter_id: str, acknowledge: Connection
) -> None:
    """Add records 0, 1, ... to a shared journal, and send each number when its `append` has
    returned.
    """
    stores = open_shared(root, url, environment)
    number = 0
    while True:
        stores.calibrations.append(adapter_id, {"value": number})
        acknowledge.send(number)
        number += 1


def load_and_digest(checkpoint: Path, cache: Path, answer: Connection) -> None:
    """Load a base, noting each time that it is quantised, and send a digest of its weights."""
    quantise = model_store.pretrained.bases.quantise

    def counted(*arguments: Any) -> None:
        with (cache / "builds").open("a") as log:
            log.write("built\n")
        quantise(*arguments)

    model_store.pretrained.bases.quantise = counted
    base = model_store.pretrained.bases.load_base(str(checkpoint), cache_dir=cache, progress=False)
    sha = hashlib.sha256()
    for weight in base.model.state_dict().values():
        sha.update(weight.float().numpy().tobytes())
    answer.send(sha.hexdigest())
