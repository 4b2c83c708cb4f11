"""What is made of an adapter when the posterior that is served changes: another one, of its
examples.
"""

from __future__ import annotations

import asyncio
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, get_args

from abmll.adaptation.settings import AdaptSettings, Effort, settings_of
from service.engine.adapter_records import served_of, spec_of
from service.engine.answering import Answering
from service.engine.pricing import DryRun, price_of
from service.engine.requests import AdaptOverrides, AdaptRequest, CacheOutcome
from service.engine.specs import for_support
from service.engine.tenants import Belongings
from service.engine.traffic import RequestContext
from service.errors import CalibrationMissingError, TextsNotStoredError
from service.executors.contract import ServedModel

if TYPE_CHECKING:
    from model_store.adapters.manifest import AdapterManifest

NOTE = "readapted from {}"
"""The note of the version by which a name moves to the new adapter."""


@dataclass(frozen=True)
class Readapted:
    """The adapter `new_id` of the same examples as `adapter_id`, made with the default posterior.

    They are one and the same where `adapter_id` is of that posterior itself. `names` moved to it,
    or would. `loses_calibration` says that the old one has a calibration and the new one none: the
    certificates of these names do not hold any more. `cache` says how the new one came to be there,
    and is None in a dry run, which alone has a `price`.
    """

    adapter_id: str
    new_id: str
    posterior_id: str
    names: tuple[str, ...] = ()
    loses_calibration: bool = False
    cache: CacheOutcome | None = None
    price: DryRun | None = None


def request_of(manifest: AdapterManifest, served: ServedModel) -> AdaptRequest:
    """Return the request for an adapter of the same examples.

    The settings are those of the same effort, where the adapter has those of one and its posterior
    is served, so that its defaults are known; else the same numbers. Raises `TextsNotStoredError`.
    """
    support = manifest.support
    if not support.texts:
        raise TextsNotStoredError(
            f"adapter {manifest.id} was stored without the texts of its examples (setting store_support): "
            "send the examples themselves to POST /v1/adapters",
            "adapter_id",
        )
    names = {field.name for field in fields(AdaptSettings)}
    chosen = AdaptSettings(**{name: value for name, value in manifest.settings.items() if name in names})
    old = served_of(manifest, served)
    effort = _effort(chosen, manifest, old) if old is not None else None
    return AdaptRequest(
        support.examples,
        AdaptOverrides(effort) if effort else AdaptOverrides(**asdict(chosen)),
        manifest.seed,
        bool(manifest.settings["truncate"]),
        calibration_folds=manifest.settings.get("calibration_folds"),
        questions=support.questions,
    )


def _effort(chosen: AdaptSettings, manifest: AdapterManifest, old: ServedModel) -> Effort | None:
    """Return the effort whose settings are `chosen`, of an adapter of the posterior `old`."""
    support, full = manifest.support.examples, old.defaults
    if chosen == for_support(full, support, spec_of(manifest, old).examples):
        return "full"
    return next((effort for effort in get_args(Effort) if settings_of(effort, full) == chosen), None)


async def readapt(
    adapter_id: str,
    own: Belongings,
    answering: Answering,
    context: RequestContext,
    *,
    dry_run_deadline: float | None,
    move_names: bool,
) -> Readapted:
    """See `Engine.readapt`. With a `dry_run_deadline`, in seconds, nothing is made and moved."""
    served, manifest = context.served, (await own.registry.get(adapter_id)).manifest
    if served_of(manifest, served) is served:
        return Readapted(adapter_id, adapter_id, served.posterior_id)
    request = request_of(manifest, served)
    spec = await answering.admit_adapt(request, served)
    done = Readapted(adapter_id, spec.job.adapter_id, served.posterior_id)
    if dry_run_deadline is not None:
        price = await asyncio.to_thread(price_of, served, spec, None)
        known = await own.registry.knows(done.new_id)
        shown = DryRun.of(spec, None, price, dry_run_deadline, made_already=known)
        names = await own.names.of(adapter_id)
        done = replace(done, price=shown)
    else:
        await answering.price(request, context, spec, None)
        _, cache = await answering.obtain(spec, context)
        names = await own.names.move(adapter_id, done.new_id, NOTE.format(adapter_id)) if move_names else []
        done = replace(done, cache=cache)
    there = await own.registry.manifests([done.new_id])
    loses = await _is_calibrated(manifest, own) and not (
        done.new_id in there and await _is_calibrated(there[done.new_id], own)
    )
    return replace(done, names=tuple(names) if move_names else (), loses_calibration=loses)


async def _is_calibrated(manifest: AdapterManifest, own: Belongings) -> bool:
    try:
        return bool(await own.gates.views(manifest))
    except CalibrationMissingError:
        return False
