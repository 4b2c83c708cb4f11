"""What is recorded with an adapter, and what is read back from it."""

from __future__ import annotations

from dataclasses import asdict, fields, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from abmll.text.tasks import shared_options
from model_store.adapters.manifest import AdapterManifest, SupportRecord
from model_store.adapters.store import StoredAdapter
from service.engine.admission import support_warnings
from service.engine.fitting import Fitting, encode_support
from service.engine.identity import support_digest
from service.errors import AdapterMismatchError
from service.executors.contract import ServedModel

if TYPE_CHECKING:
    from abmll.adaptation.run import Adaptation
    from abmll.assurance.held_out import HeldOutSummary


def adapter_of(
    fitting: Fitting, adaptation: Adaptation, held_out: HeldOutSummary | None = None
) -> StoredAdapter:
    """The adapter to store for a finished fit; `held_out` is what its folds told of its temperature."""
    served, folds = fitting.served, len(fitting.folds)
    own = {"calibration_folds": folds} if folds else {}
    settings = {
        **asdict(fitting.settings),
        "truncate": fitting.truncate,
        "template": dict(served.template),
        **own,
    }
    manifest = AdapterManifest(
        id=fitting.job.adapter_id,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        base=served.base,
        posterior_id=served.posterior_id,
        posterior_digest=served.posterior_digest,
        settings=settings,
        seed=fitting.seed,
        support=SupportRecord(
            examples=fitting.support,
            tokens=adaptation.support_tokens,
            options=shared_options(fitting.support),
            digest=support_digest(fitting.support),
        ),
        losses=adaptation.losses,
        warnings=support_warnings(fitting.support),
        config=adaptation.posterior.config,
        sites=adaptation.posterior.sites,
        held_out=held_out,
    )
    return StoredAdapter(manifest, adaptation.posterior)


def fitting_of(manifest: AdapterManifest, served: ServedModel) -> Fitting:
    """The fit that made the adapter, without its folds; settings which it was made without are those that are served."""
    names = {field.name for field in fields(served.defaults)}
    chosen = {name: value for name, value in manifest.settings.items() if name in names}
    support, truncate = manifest.support.examples, manifest.settings["truncate"]
    return Fitting(
        served,
        support,
        encode_support(support, served, truncate=truncate),
        replace(served.defaults, **chosen),
        manifest.seed,
        truncate,
    )


def is_served(manifest: AdapterManifest, served: ServedModel) -> bool:
    """Whether the adapter belongs to the base and global posterior that are served."""
    return manifest.base == served.base and manifest.posterior_digest == served.posterior_digest


def check_adapter(manifest: AdapterManifest, served: ServedModel) -> None:
    """Raise `AdapterMismatchError` unless the adapter belongs to the base and global posterior that are served."""
    if not is_served(manifest, served):
        made, now = manifest.base, served.base
        message = (
            f"adapter {manifest.id} was made with {made.id} ({made.quantisation}) and posterior {manifest.posterior_id}; "
            f"this server serves {now.id} ({now.quantisation}) with {served.posterior_id}"
        )
        raise AdapterMismatchError(message, "adapter_id")
