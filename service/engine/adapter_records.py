"""Records of adapters: written from a specification and its adaptation, and read back."""

from __future__ import annotations

from dataclasses import asdict, fields, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from abmll.text.tasks import shared_options
from model_store.adapters.manifest import (
    FORMAT_VERSION,
    WITHOUT_VALUES,
    AdapterManifest,
    SupportRecord,
)
from model_store.adapters.store import StoredAdapter
from service.engine.admission import support_warnings
from service.engine.identity import support_digest
from service.engine.specs import AdaptationSpec, encode_support
from service.errors import AdapterMismatchError
from service.executors.contract import ServedModel

if TYPE_CHECKING:
    from abmll.adaptation.run import Adaptation
    from abmll.assurance.held_out import HeldOutSummary


def adapter_of(
    spec: AdaptationSpec, adaptation: Adaptation, held_out: HeldOutSummary | None = None
) -> StoredAdapter:
    """Return the adapter to store for a finished adaptation."""
    served, folds = spec.served, len(spec.folds)
    own = {"calibration_folds": folds} if folds else {}
    settings = {
        **asdict(spec.settings),
        "truncate": spec.truncate,
        "template": dict(served.template),
        **own,
    }
    support = SupportRecord(
        examples=spec.support,
        tokens=adaptation.support_tokens,
        options=shared_options(spec.support),
        digest=support_digest(spec.support),
        questions=spec.questions,
    )
    support = support if spec.keep_texts else support.without_texts()
    manifest = AdapterManifest(
        id=spec.job.adapter_id,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        base=served.base,
        posterior_id=served.posterior_id,
        posterior_digest=served.posterior_digest,
        settings=settings,
        seed=spec.seed,
        support=support,
        losses=adaptation.losses,
        warnings=support_warnings(support.examples, spec.questions),
        config=adaptation.posterior.config,
        sites=adaptation.posterior.sites,
        held_out=held_out,
        format_version=FORMAT_VERSION if adaptation.posterior.has_values else WITHOUT_VALUES,
    )
    return StoredAdapter(manifest, adaptation.posterior)


def spec_of(manifest: AdapterManifest, served: ServedModel) -> AdaptationSpec:
    """Return the specification that made the adapter, without its folds.

    Settings that the manifest does not have are the served defaults.
    """
    names = {field.name for field in fields(served.defaults)}
    chosen = {name: value for name, value in manifest.settings.items() if name in names}
    support, truncate = manifest.support.examples, manifest.settings["truncate"]
    return AdaptationSpec(
        served,
        support,
        encode_support(support, served, truncate=truncate),
        replace(served.defaults, **chosen),
        manifest.seed,
        truncate,
    )


def served_of(manifest: AdapterManifest, served: ServedModel) -> ServedModel | None:
    """Return what is served with the global posterior of the adapter; None where that is not
    served.
    """
    if manifest.base != served.base:
        return None
    found = (one for one in served.by_posterior if one.posterior_digest == manifest.posterior_digest)
    return next(found, None)


def check_adapter(manifest: AdapterManifest, served: ServedModel) -> ServedModel:
    """Return as `served_of`. Raises `AdapterMismatchError` where that is None."""
    found = served_of(manifest, served)
    if found is not None:
        return found
    made, now = manifest.base, served.base
    ids = ", ".join(one.posterior_id for one in served.by_posterior)
    keep = (
        f"the setting also_posteriors={manifest.posterior_id} (its id, or its folder) serves that one too"
        if made == now
        else "another server, of that base, can serve it"
    )
    message = (
        f"adapter {manifest.id} was made with {made.id} ({made.quantisation}) and posterior "
        f"{manifest.posterior_id}; this server serves {now.id} ({now.quantisation}) with {ids}. "
        f"{keep[0].upper()}{keep[1:]}; `abmll readapt --adapter {manifest.id}` makes an adapter of the "
        "same examples with what is served"
    )
    raise AdapterMismatchError(message, "adapter_id")
