"""The base model, the adapters and their names as OpenAI's models."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from service import schemas

if TYPE_CHECKING:
    from model_store.adapters.manifest import AdapterManifest
    from service.executors.contract import ServedModel


def base_card(served: ServedModel, started: datetime) -> schemas.ModelCard:
    """Show the base model. `started` is when this server started."""
    return schemas.ModelCard(
        id=served.base.id,
        created=int(started.timestamp()),
        parent=None,
        base=schemas.BaseInfo(**served.base.to_json()),
        posterior=served.posterior_id,
        posteriors=[one.posterior_id for one in served.by_posterior],
        max_model_len=served.encoder.max_tokens,
    )


def adapter_card(manifest: AdapterManifest, served: ServedModel) -> schemas.ModelCard:
    """Show an adapter as a model of its base."""
    return schemas.ModelCard(
        id=manifest.id,
        created=int(datetime.fromisoformat(manifest.created).timestamp()),
        parent=manifest.base.id,
        base=schemas.BaseInfo(**manifest.base.to_json()),
        posterior=manifest.posterior_id,
        posteriors=[manifest.posterior_id],
        max_model_len=served.encoder.max_tokens,
    )


def name_card(model: str, manifest: AdapterManifest, served: ServedModel) -> schemas.ModelCard:
    """Show a name, or a version of one, as a model that its adapter is the parent of."""
    return adapter_card(manifest, served).model_copy(update={"id": model, "parent": manifest.id})


def summary(card: schemas.ModelCard) -> schemas.ModelSummary:
    """Show a model as TypeSafe's clients list it."""
    if card.parent is None:
        description = "Base model: answers without examples, or learns from the cases of a request."
    elif card.parent == card.base.id:
        description = f"Adapter of {card.parent}, made from examples."
    else:
        description = f"Name of the adapter {card.parent}."
    return schemas.ModelSummary(
        name=card.id,
        description=description,
        release_date=datetime.fromtimestamp(card.created, UTC).date().isoformat(),
    )
