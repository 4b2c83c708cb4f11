"""Opens the stores that settings name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from model_store.adapters.id_keys import id_key_among, read_or_make_id_key
from model_store.adapters.opening import Stores, open_stores
from service.settings import Settings


def stores_of(settings: Settings, fresh_seconds: float | None = None) -> Stores:
    """Open the stores of the data folder, or those at `store_url` with the data folder as a cache.

    Close `adapters` at the end. Raises as `open_stores`.
    """
    return open_stores(
        settings.data_dir,
        settings.store_url,
        cache_bytes=settings.store_cache_bytes,
        fresh_seconds=settings.store_fresh_seconds if fresh_seconds is None else fresh_seconds,
        timeout_seconds=settings.store_timeout_seconds,
    )


@contextmanager
def opened_stores(settings: Settings) -> Iterator[Stores]:
    """Yield the stores as they are now, for one command. Raises as `open_stores`.

    A shared store needs no data folder then, which may be that of a server.
    """
    with ExitStack() as stack:
        if settings.store_url is not None:
            cache = stack.enter_context(TemporaryDirectory())
            settings = settings.model_copy(update={"data_dir": Path(cache)})
        stores = stores_of(settings, fresh_seconds=0)
        stack.callback(stores.adapters.close)
        yield stores


def id_key_of(stores: Stores, settings: Settings) -> bytes:
    """Return the key of a tenant's ids, which is made where there is none.

    Servers that share a store share it too. Raises as `read_or_make_id_key` and `id_key_among`.
    """
    if stores.objects is None:
        return read_or_make_id_key(settings.data_dir)
    return id_key_among(stores.objects)
