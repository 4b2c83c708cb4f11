import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from abmll.decoder.layout import Site, flat_size
from abmll.posterior.config import NoiseConfig
from abmll.posterior.posteriors import GlobalPosterior, TaskPosterior
from abmll.similarity.features import Whitening
from model_store.errors import CorruptArtifactError, UnknownArtifactError, UnsupportedFormatError
from model_store.posteriors import _SHIPPED as SHIPPED
from model_store.posteriors import (
    DEFAULT_POSTERIORS,
    PosteriorManifest,
    load_posterior,
    save_posterior,
    shipped_posteriors,
)
from model_store.pretrained.identity import BaseIdentity
from model_store.tensors import posterior_digest
from tests.tiny import make_config


def manifest_of(prior: GlobalPosterior, id: str = "tiny-1") -> PosteriorManifest:
    return PosteriorManifest.of(
        prior,
        id=id,
        base=BaseIdentity("tiny", "sha256:0123", "int8"),
        adapt={"steps": 6, "learning_rate": 0.001},
        template={"before_input": "", "after_input": "\nAnswer:"},
        training={"data": [{"task": "ag_news", "licence": "unknown"}], "commit": "abc", "seed": 3},
        metrics={"class_to_class": {"accuracy": 0.6, "nll": 0.86}},
    )


@pytest.fixture
def artifact(prior: GlobalPosterior, tmp_path: Path) -> Path:
    save_posterior(tmp_path / "tiny-1", prior, manifest_of(prior))
    return tmp_path / "tiny-1"


def test_what_is_saved_is_loaded(prior, artifact):
    loaded = load_posterior(artifact)
    assert loaded.manifest == manifest_of(prior)
    assert (loaded.prior.config, loaded.prior.sites) == (prior.config, prior.sites)
    assert torch.equal(loaded.prior.values, prior.values)
    assert isinstance(loaded.prior, GlobalPosterior)
    assert {path.name for path in artifact.iterdir()} == {
        "posterior.safetensors",
        "manifest.json",
        "README.md",
    }


def test_a_whitening_is_part_of_the_artifact(prior, artifact):
    prior = replace(prior, whitening=Whitening(torch.arange(3.0), torch.randn(3, 3)))
    save_posterior(artifact, prior, manifest_of(prior))
    found = load_posterior(artifact).prior.whitening
    assert torch.equal(found.mean, prior.whitening.mean)
    assert torch.equal(found.map, prior.whitening.map)
    save_posterior(artifact, replace(prior, whitening=None), manifest_of(replace(prior, whitening=None)))
    assert load_posterior(artifact).prior.whitening is None


sizes = st.integers(1, 5)
all_sites = st.lists(
    st.builds(Site, st.integers(0, 40), st.sampled_from(("q", "v", "down")), sizes, sizes), max_size=6
)
numbers = st.floats(width=32, allow_nan=True, allow_infinity=True)


@given(
    sites=all_sites.map(lambda s: tuple({site.name: site for site in s}.values())),
    rank=st.integers(1, 3),
    data=st.data(),
)
@settings(max_examples=50, deadline=None)
def test_any_posterior_survives_its_tensors_bit_for_bit(sites, rank, data):
    size = flat_size(sites, rank)
    if not size:
        return
    values = torch.tensor(data.draw(st.lists(numbers, min_size=size, max_size=size)), dtype=torch.float32)
    posterior = TaskPosterior(make_config(rank=rank), sites, values)
    again = TaskPosterior.from_tensors(posterior.config, sites, posterior.to_tensors())
    assert torch.equal(again.values.view(torch.int32), values.view(torch.int32))
    assert posterior_digest(again) == posterior_digest(posterior)


def test_the_digest_covers_configuration_sites_and_every_value(prior):
    changed = prior.values.clone()
    changed[-1] = torch.nextafter(changed[-1], torch.tensor(torch.inf))
    other_sites = (replace(prior.sites[0], layer=7), *prior.sites[1:])
    digests = {
        posterior_digest(posterior)
        for posterior in (
            prior,
            GlobalPosterior(prior.config, prior.sites, changed),
            GlobalPosterior(replace(prior.config, noise=NoiseConfig(scale=0.5)), prior.sites, prior.values),
            GlobalPosterior(prior.config, other_sites, prior.values),
            replace(prior, whitening=Whitening(torch.zeros(3), torch.eye(3))),
            replace(prior, whitening=Whitening(torch.zeros(3), 2 * torch.eye(3))),
        )
    }
    assert len(digests) == 6
    assert posterior_digest(TaskPosterior.start(prior)) == posterior_digest(prior)


def edit_manifest(folder: Path, change) -> None:
    values = json.loads((folder / "manifest.json").read_text())
    change(values)
    (folder / "manifest.json").write_text(json.dumps(values))


def change_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / "posterior.safetensors")
    tensors["layers.1.q.mean.A"][0, 0] += 1
    save_file(tensors, folder / "posterior.safetensors")


def drop_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / "posterior.safetensors")
    del tensors["layers.1.q.mean.A"]
    save_file(tensors, folder / "posterior.safetensors")


def cut_the_tensors_short(folder: Path) -> None:
    path = folder / "posterior.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    "damage",
    [
        change_a_tensor,
        drop_a_tensor,
        cut_the_tensors_short,
        lambda folder: (folder / "posterior.safetensors").unlink(),
        lambda folder: (folder / "manifest.json").write_text("{"),
        lambda folder: (folder / "manifest.json").write_text("[]"),
        lambda folder: edit_manifest(folder, lambda values: values["config"].update(alpha=1.0)),
        lambda folder: edit_manifest(folder, lambda values: values["sites"][0].update(layer=9)),
        lambda folder: edit_manifest(folder, lambda values: values.pop("base")),
        lambda folder: edit_manifest(folder, lambda values: values.update(unknown_field=1)),
    ],
)
def test_a_damaged_artifact_is_refused(artifact, damage):
    damage(artifact)
    with pytest.raises(CorruptArtifactError, match="tiny-1"):
        load_posterior(artifact)


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_another_format_is_refused_by_its_number(artifact, version):
    edit_manifest(artifact, lambda values: values.update(format_version=version))
    with pytest.raises(UnsupportedFormatError, match=f"{version!r}"):
        load_posterior(artifact)


@pytest.mark.parametrize("name", ["absent", "../posteriors", "", "model_store/absent"])
def test_what_is_neither_shipped_nor_a_folder_is_unknown(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnknownArtifactError):
        load_posterior(name)


def test_a_folder_without_a_manifest_is_no_posterior(artifact):
    (artifact / "manifest.json").unlink()
    with pytest.raises(UnknownArtifactError, match="tiny-1"):
        load_posterior(artifact)


def test_the_manifest_must_be_of_the_posterior(prior, tmp_path):
    with pytest.raises(ValueError, match="another posterior"):
        save_posterior(tmp_path / "tiny-1", prior, replace(manifest_of(prior), digest="0" * 64))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("id", ["", "../up", "Upper", "a/b", ".hidden", "a b"])
def test_ids_do_as_folder_names(prior, id):
    with pytest.raises(ValueError, match="posterior id"):
        manifest_of(prior, id)


def test_the_card_says_what_the_manifest_says(artifact, prior):
    card = (artifact / "README.md").read_text()
    front = yaml.safe_load(re.fullmatch(r"---\n(.*?)---\n.*", card, re.DOTALL)[1])
    assert front["base_model"] == "tiny"
    for text in (
        posterior_digest(prior),
        "- **noise**: weight",
        "- **after_input**: `'\\nAnswer:'`",
        "  - **accuracy**: 0.6",
        "  - task: ag_news; licence: unknown",
    ):
        assert text in card


@pytest.mark.parametrize("id", shipped_posteriors())
def test_what_ships_loads_under_its_id(id):
    assert load_posterior(id).manifest.id == id


def test_each_base_with_a_posterior_has_a_default_that_is_named(tmp_path: Path) -> None:
    bases = {load_posterior(id).manifest.base.id: id for id in shipped_posteriors()}
    assert set(bases) == set(DEFAULT_POSTERIORS)
    for base, id in DEFAULT_POSTERIORS.items():
        assert load_posterior(id).manifest.base.id == base


@pytest.mark.parametrize("other", ["smollm2-135m-zzz", "smollm2-135m-all-tasks-v7", "zz-9", "a"])
def test_a_posterior_that_is_added_does_not_become_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: str
) -> None:
    """The default was whichever id sorted last: a new one turned all adapters into errors."""
    default = DEFAULT_POSTERIORS["smollm2-135m-instruct"]
    for id in (default, other):
        shutil.copytree(SHIPPED / default, tmp_path / id)
    monkeypatch.setattr("model_store.posteriors._SHIPPED", tmp_path)
    assert shipped_posteriors() == [default, other]
