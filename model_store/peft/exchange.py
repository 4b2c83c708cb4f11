"""Conversion between posteriors and PEFT adapters: what goes into the folders (docs/peft.md)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from abmll.adaptation.settings import AdaptSettings
from abmll.decoder.layout import AdapterLayout, Site
from abmll.decoder.sites import MODULE_NAMES, walk_sites
from abmll.errors import PosteriorMismatchError
from abmll.posterior.config import PosteriorConfig
from abmll.posterior.plain_lora import (
    PlainLora,
    layout_of,
    mean_loras,
    sample_loras,
    with_constant_spread,
    with_mean,
)
from abmll.posterior.posteriors import GlobalPosterior, Posterior
from abmll.text.prompting import PromptTemplate
from model_store.card import card
from model_store.errors import UnsupportedPeftError
from model_store.peft.format import PeftAdapter, public_name, write_peft
from model_store.posteriors import LoadedPosterior, PosteriorManifest
from model_store.pretrained.bases import BaseSkeleton
from model_store.pretrained.identity import BaseIdentity
from model_store.storage import require_empty, staged

# Every module that can be adapted, in every layer.
_EVERYWHERE = AdapterLayout(modules=tuple(dict.fromkeys(MODULE_NAMES.values())))


@dataclass(frozen=True)
class Subject:
    """What is exported: a posterior with its id, its base, and the template of its prompts."""

    id: str
    posterior: Posterior
    base: BaseIdentity
    template: Mapping[str, str]


def export_mean(out: Path, subject: Subject, skeleton: BaseSkeleton) -> int:
    """Write the mean to the new folder `out` as a PEFT adapter, and return its rank.

    Raises `PosteriorMismatchError` for a base with other layers or at another revision,
    `FolderNotEmptyError` and `StorageFullError`.
    """
    require_empty(out)
    paths = _paths(subject, skeleton)
    with staged(out, f"the export of {subject.id}") as folder:
        return _write(folder, subject, paths, mean_loras(subject.posterior), "the mean", {})


def export_samples(
    out: Path,
    subject: Subject,
    skeleton: BaseSkeleton,
    *,
    count: int,
    seed: int,
    sequence_seed: int,
    on_sample: Callable[[int], None],
) -> int:
    """Write samples 0 to `count` - 1 to `out`/sample-0 and so on, and return their rank.

    `on_sample` is called with the number of samples written so far. `sequence_seed` is the seed of
    the method's samples. `seed` is the one that a request names to get the same samples. Raises as
    `export_mean`, and `SampleNotALoraError` for the noise family `output`.
    """
    require_empty(out)
    paths, rank = _paths(subject, skeleton), 0
    with staged(out, f"the export of {subject.id}") as folder:
        for number in range(count):
            loras = sample_loras(subject.posterior, sequence_seed, number)
            target = folder / f"sample-{number}"
            target.mkdir()
            record = {"number": number, "of": count, "seed": seed}
            rank = _write(target, subject, paths, loras, f"sample {number}", record)
            on_sample(number + 1)
    return rank


def import_posterior(
    adapter: PeftAdapter,
    skeleton: BaseSkeleton,
    like: LoadedPosterior | None,
    *,
    id: str,
    spread: float | None = None,
) -> LoadedPosterior:
    """Return the global posterior whose mean is `adapter`.

    Layers, rank, spread and settings are those of the posterior `like`. Without `like`, the layers
    and the rank are the adapter's own, and the settings are the defaults. `spread` replaces the
    spread by one standard deviation for every weight. Raises `UnsupportedPeftError` for a module
    that the base does not have or that `like` does not adapt, and for a rank above that of `like`;
    `PosteriorMismatchError` for other sizes; `ValueError` for an `id` that is none.
    """
    known = {path: site for path, site, _ in walk_sites(skeleton.model, _EVERYWHERE)}
    if path := next((path for path in adapter.loras if path not in known), None):
        raise UnsupportedPeftError(f"{path} is no layer of {skeleton.identity.id} that can be adapted")
    loras = {known[path]: lora for path, lora in adapter.loras.items()}
    if like is None:
        layout = layout_of(loras)
        sites = tuple(site for _, site, _ in walk_sites(skeleton.model, layout))
        start = GlobalPosterior.untrained(PosteriorConfig(layout), sites)
    else:
        start = like.prior
        _check_inside(loras, like)
    prior = with_mean(start, loras)
    if spread is not None:
        prior = with_constant_spread(prior, spread)
    settings = like.manifest if like else None
    return LoadedPosterior(
        prior,
        PosteriorManifest.of(
            prior,
            id=id,
            base=skeleton.identity,
            adapt=settings.adapt if settings else asdict(AdaptSettings()),
            template=settings.template if settings else PromptTemplate().to_json(),
            training={
                "imported_from": {"format": "PEFT LoRA", "base": adapter.base, "sha256": adapter.digest},
                "layers_and_settings_of": settings.id if settings else "the adapter",
            },
            metrics={},
        ),
    )


def _check_inside(loras: Mapping[Site, PlainLora], like: LoadedPosterior) -> None:
    way_out = "an `untrained` posterior takes the adapter's own layers and rank"
    if site := next((site for site in loras if site not in like.prior.sites), None):
        raise UnsupportedPeftError(f"posterior {like.manifest.id} does not adapt {site.name}; {way_out}")
    rank, most = max(lora.rank for lora in loras.values()), like.prior.config.layout.rank
    if rank > most:
        raise UnsupportedPeftError(
            f"the adapter has rank {rank}, posterior {like.manifest.id} {most}; {way_out}"
        )


def _paths(subject: Subject, skeleton: BaseSkeleton) -> dict[Site, str]:
    """Map every site to the path of its module.

    Raises `PosteriorMismatchError` where the base is not the subject's.
    """
    if skeleton.identity.revision != subject.base.revision:
        made, given = subject.base, skeleton.identity
        raise PosteriorMismatchError(
            f"{subject.id} was made for {made.id} at revision {made.revision}, not for {given.id} at {given.revision}"
        )
    paths = {site: path for path, site, _ in walk_sites(skeleton.model, subject.posterior.config.layout)}
    if tuple(paths) != subject.posterior.sites:
        raise PosteriorMismatchError(f"{subject.id} was made for a model with other layers or sizes")
    return paths


def _write(
    folder: Path,
    subject: Subject,
    paths: Mapping[Site, str],
    loras: Mapping[Site, PlainLora],
    what: str,
    sample: Mapping[str, Any],
) -> int:
    rank = next(iter(loras.values())).rank
    name = public_name(subject.base)
    front = {
        "base_model": name,
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": [f"base_model:adapter:{name}", "lora", "abmll"],
    }
    introduction = (
        f"{what.capitalize()} of the LoRA posterior `{subject.id}`, as a LoRA of rank {rank}. It is exact on the base weights "
        "named here, at this quantisation, for prompts in this template."
    )
    if sample:
        introduction += " A prediction is the mean of all samples' option probabilities."
    sections = {"Base model": subject.base.to_json(), "Prompt template": subject.template}
    if sample:
        sections["Sample"] = sample
    text = card(front, f"{subject.id}, {what}", introduction, sections)
    write_peft(folder, {paths[site]: lora for site, lora in loras.items()}, subject.base, text)
    return rank
