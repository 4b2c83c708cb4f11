from contextlib import chdir
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from model_store.errors import UnknownBaseError
from model_store.pretrained.catalogue import (
    CATALOGUE,
    DEFAULT_BASE,
    FolderSource,
    HubSource,
    WheelSource,
    resolve_base,
)


def test_the_embedded_default_needs_no_hub_and_is_quantised_to_int8():
    base = resolve_base(DEFAULT_BASE)
    assert isinstance(base.source, WheelSource)
    assert base.quantisation == "int8"


def test_names_of_the_catalogue_lead_to_themselves():
    assert {name: resolve_base(name).name for name in CATALOGUE} == {name: name for name in CATALOGUE}


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("acme/tiny", HubSource("acme/tiny", "main")),
        ("acme/tiny@v1.0", HubSource("acme/tiny", "v1.0")),
        ("acme/tiny@refs/pr/3", HubSource("acme/tiny", "refs/pr/3")),
    ],
)
def test_other_names_are_hub_ids(name, source):
    base = resolve_base(name)
    assert (base.name, base.source) == ("acme/tiny", source)


def test_a_folder_wins_over_a_hub_id(tmp_path: Path, monkeypatch):
    (tmp_path / "acme" / "tiny").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    base = resolve_base("acme/tiny")
    assert (base.name, base.source) == ("tiny", FolderSource(tmp_path / "acme" / "tiny"))


@pytest.mark.parametrize(
    "name",
    [
        "",
        "tiny",
        "../up/there",
        "a/b/c",
        "acme/",
        "/acme",
        "acme/ti ny",
        "a/b@",
        "acme/tiny\n",
        "a\0b",
        "x" * 5000,
    ],
)
def test_anything_else_is_unknown(name):
    with pytest.raises(UnknownBaseError):
        resolve_base(name)


@pytest.fixture(scope="module")
def empty_folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("empty")


@example("abmll")
@given(st.text(max_size=30))
def test_no_text_breaks_the_lookup(empty_folder, name):
    # Any folder of the working directory is a base.
    with chdir(empty_folder), pytest.raises(UnknownBaseError):
        resolve_base(name.replace(".", "").replace("/", "-"))
