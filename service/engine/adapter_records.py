"""What is recorded with an adapter, and what is read back from it."""

from __future__ import annotations

from dataclasses import asdict, fields, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from model_store.adapters.manifest import AdapterManifest, SupportRecord
from model_store.adapters.store import StoredAdapter
from service.engine.admission import shared_options, support_warnings
from service.engine.identity import support_digest
from service.errors import AdapterMismatchError
from service.executors.contract import AdaptJob, ServedModel

if TYPE_CHECKING:
    from abmll.adaptation.run import Adaptation
    from abmll.assurance.held_out import HeldOutSummary


def adapter_of(
    identity: str,
    job: AdaptJob,
    served: ServedModel,
    adaptation: Adaptation,
    folds: int = 0,
    held_out: HeldOutSummary | None = None,
) -> StoredAdapter:
    """The adapter to store for a finished job; `held_out` is what so many folds told of its temperature."""
    own = {"calibration_folds": folds} if folds else {}
    manifest = AdapterManifest(
        id=identity,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        base=served.base,
        posterior_id=served.posterior_id,
        posterior_digest=served.posterior_digest,
        settings={**asdict(job.settings), "truncate": job.truncate, "template": dict(served.template), **own},
        seed=job.seed,
        support=SupportRecord(
            examples=job.support,
            tokens=adaptation.support_tokens,
            options=shared_options(job.support),
            digest=support_digest(job.support),
        ),
        losses=adaptation.losses,
        warnings=support_warnings(job.support),
        config=adaptation.posterior.config,
        sites=adaptation.posterior.sites,
        held_out=held_out,
    )
    return StoredAdapter(manifest, adaptation.posterior)


def job_of(manifest: AdapterManifest, served: ServedModel) -> AdaptJob:
    """The job that made the adapter; settings which it was made without are those that are served."""
    names = {field.name for field in fields(served.defaults)}
    chosen = {name: value for name, value in manifest.settings.items() if name in names}
    settings = replace(served.defaults, **chosen)
    return AdaptJob(manifest.support.examples, settings, manifest.seed, manifest.settings["truncate"])


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
