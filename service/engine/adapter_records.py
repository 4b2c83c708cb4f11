"""Records of adapters: written from a specification and its adaptation, and read back."""

from __future__ import annotations

from dataclasses import asdict, fields, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from abmll.text.tasks import shared_options
from model_store.adapters.manifest import AdapterManifest, SupportRecord
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


def is_served(manifest: AdapterManifest, served: ServedModel) -> bool:
    """Return whether the adapter was made with the base and global posterior that are served."""
    return manifest.base == served.base and manifest.posterior_digest == served.posterior_digest


def check_adapter(manifest: AdapterManifest, served: ServedModel) -> None:
    """Raise `AdapterMismatchError` unless `is_served`."""
    if not is_served(manifest, served):
        made, now = manifest.base, served.base
        message = (
            f"adapter {manifest.id} was made with {made.id} ({made.quantisation}) and posterior {manifest.posterior_id}; "
            f"this server serves {now.id} ({now.quantisation}) with {served.posterior_id}"
        )
        raise AdapterMismatchError(message, "adapter_id")
