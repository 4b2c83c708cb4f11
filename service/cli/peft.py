"""`abmll export` and `abmll import-peft`: posteriors to PEFT adapters and back (docs/peft.md)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from model_store.progress import counting_bar
from model_store.terminal import shown
from service.cli.failures import expected_errors_in_one_line
from service.cli.output import err
from service.cli.output import out as console
from service.cli.settings_options import with_settings
from service.settings import Settings

if TYPE_CHECKING:
    from abmll.posterior.posteriors import GlobalPosterior
    from model_store.adapters.manifest import AdapterManifest
    from model_store.peft.exchange import Subject


@with_settings("model", "data_dir", "store_url", "cache_dir")
def export(
    settings: Settings,
    *,
    adapter_id: Annotated[
        str | None,
        typer.Argument(help="Id of an adapter in the data folder, which a server may use at the same time."),
    ] = None,
    posterior: Annotated[
        str | None,
        typer.Option(help="Id or folder of a global posterior, instead of an adapter."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder to write; it must be empty or not exist.")],
    mean: Annotated[
        bool, typer.Option("--mean", help="Write the posterior's mean; this is the default.")
    ] = False,
    samples: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=64,
            help="Write this many posterior samples instead, in folders sample-0, sample-1, ...",
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            min=0, help="Seed of the samples: a prediction with this seed draws the same; 0 by default."
        ),
    ] = None,
) -> None:
    """Write the mean of an adapter, or samples of it, as PEFT LoRA adapters for other software."""
    if (adapter_id is None) == (posterior is None):
        raise typer.BadParameter("give exactly one of ADAPTER_ID and --posterior")
    if samples is None and seed is not None:
        raise typer.BadParameter("--seed is for --samples: the mean has none")
    if samples is not None and mean:
        raise typer.BadParameter("give one of --mean and --samples")
    with expected_errors_in_one_line():
        from model_store.peft.exchange import export_mean, export_samples  # noqa: PLC0415
        from model_store.pretrained.bases import load_base_skeleton  # noqa: PLC0415
        from model_store.storage import require_empty  # noqa: PLC0415
        from service.executors.worker import sequence_seed  # noqa: PLC0415

        target = out.resolve()
        require_empty(target)
        subject = _stored(settings, adapter_id) if adapter_id else _global(str(posterior))
        skeleton = load_base_skeleton(
            settings.model, quantisation=subject.base.quantisation, cache_dir=settings.cache_dir
        )
        if samples is None:
            rank = export_mean(target, subject, skeleton)
        else:
            seed = seed or 0
            with counting_bar(err, "") as progress:
                bar = progress.add_task("Samples", total=samples)
                rank = export_samples(
                    target,
                    subject,
                    skeleton,
                    count=samples,
                    seed=seed,
                    sequence_seed=sequence_seed(seed, adapter_id) if adapter_id else seed,
                    on_sample=lambda done: progress.update(bar, completed=done),
                )
    what = "the mean" if samples is None else f"{samples} samples"
    console.print(f"Wrote {what} of {shown(subject.id)}, rank {rank}, to {shown(str(out))}.")


@with_settings("model", "posterior", "quantisation", "cache_dir")
def import_peft(
    settings: Settings,
    *,
    folder: Annotated[
        Path,
        typer.Argument(
            exists=True, file_okay=False, help="Folder with adapter_config.json and its safetensors file."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder to write; it must be empty or not exist.")],
    name: Annotated[
        str | None, typer.Option("--id", help="Id of the new posterior; by default the name of --out.")
    ] = None,
    spread: Annotated[
        float | None,
        typer.Option(min=0.0, help="Standard deviation of every weight, instead of that of --posterior."),
    ] = None,
) -> None:
    """Make a global posterior whose mean is a PEFT LoRA, for the option `--posterior`.

    Layers, rank, spread and settings come from `--posterior`. With `--posterior untrained`, layers
    and rank are those of the LoRA, spread and settings the defaults.
    """
    with expected_errors_in_one_line():
        from model_store.models import check_base  # noqa: PLC0415
        from model_store.peft.exchange import import_posterior  # noqa: PLC0415
        from model_store.peft.format import read_peft  # noqa: PLC0415
        from model_store.posteriors import check_posterior_id, save_posterior  # noqa: PLC0415
        from model_store.pretrained.bases import load_base_skeleton  # noqa: PLC0415
        from model_store.storage import require_empty  # noqa: PLC0415
        from service.executors.loading import choose_posterior  # noqa: PLC0415

        target = out.resolve()
        id = name or target.name
        try:
            check_posterior_id(id)
        except ValueError as error:
            raise typer.BadParameter(f"{error}: name it with --id") from error
        require_empty(target)
        adapter = read_peft(folder.resolve())
        like = choose_posterior(settings)
        quantisation = settings.quantisation or (like.manifest.base.quantisation if like else None)
        skeleton = load_base_skeleton(settings.model, quantisation=quantisation, cache_dir=settings.cache_dir)
        if like is not None:
            check_base(like.manifest, skeleton.identity)
        imported = import_posterior(adapter, skeleton, like, id=id, spread=spread)
        save_posterior(target, imported.prior, imported.manifest)
    config, found = imported.prior.config, f"{len(adapter.loras)} of {len(imported.prior.sites)}"
    console.print(
        f"Wrote posterior {shown(id)} to {shown(str(out))}: rank {config.layout.rank}, a mean for {found} adapted layers. "
        f"The adapter names {shown(adapter.base or 'no base')}; this posterior is for {shown(skeleton.identity.id)}."
    )


def _stored(settings: Settings, adapter_id: str) -> Subject:
    """Read the adapter to export, from the data folder also while a server uses that."""
    from model_store.adapters.store import read_adapter  # noqa: PLC0415
    from model_store.errors import UnknownArtifactError  # noqa: PLC0415
    from model_store.peft.exchange import Subject  # noqa: PLC0415
    from service.engine.stores import opened_stores  # noqa: PLC0415

    if settings.store_url is None:
        stored = read_adapter(settings.adapters_dir, adapter_id)
    else:
        with opened_stores(settings) as stores:
            found = stores.adapters.get(adapter_id)
        if found is None:
            raise UnknownArtifactError(f"no adapter {adapter_id!r} in {settings.store_url}")
        stored = found
    manifest, posterior = stored.manifest, stored.posterior
    if not posterior.has_values:
        posterior = posterior.with_values(_theta(manifest))
    return Subject(manifest.id, posterior, manifest.base, manifest.settings.get("template", {}))


def _theta(manifest: AdapterManifest) -> GlobalPosterior:
    """Return the global posterior of an adapter, which has its values.

    Raises `UnknownArtifactError` where its id names none, or another one.
    """
    from model_store.errors import UnknownArtifactError  # noqa: PLC0415
    from model_store.posteriors import load_posterior, shipped_posteriors  # noqa: PLC0415

    if manifest.posterior_id in shipped_posteriors():
        loaded = load_posterior(manifest.posterior_id)
        if loaded.manifest.digest == manifest.posterior_digest:
            return loaded.prior
    raise UnknownArtifactError(
        f"adapter {manifest.id} was made without a step, so its weights are those of posterior "
        f"{manifest.posterior_id}, which is not one that ships: export that one, --posterior FOLDER"
    )


def _global(id_or_folder: str) -> Subject:
    """Read the global posterior to export."""
    from model_store.peft.exchange import Subject  # noqa: PLC0415
    from model_store.posteriors import load_posterior  # noqa: PLC0415

    loaded = load_posterior(id_or_folder)
    return Subject(loaded.manifest.id, loaded.prior, loaded.manifest.base, dict(loaded.manifest.template))
