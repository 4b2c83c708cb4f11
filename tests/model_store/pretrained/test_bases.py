"""Loading, quantising and caching, on a tiny random Llama.

`tests/e2e` loads the embedded default.
"""

import errno
import json
import logging
import shutil
from collections import namedtuple
from pathlib import Path

import bitsandbytes as bnb
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from model_store.errors import FetchError, StorageFullError, UnusableBaseError
from model_store.pretrained import bases, convert
from model_store.pretrained.bases import LoadedBase, default_cache_dir, load_base
from model_store.pretrained.catalogue import Quantisation
from tests.model_store.processes import load_and_digest
from tests.tiny import CORPUS, tiny_model, tiny_tokenizer

QUANTISATIONS: tuple[Quantisation, ...] = ("int8", "nf4", "none")


def load(checkpoint: Path, cache: Path, quantisation: Quantisation | None = None, **options) -> LoadedBase:
    return load_base(str(checkpoint), quantisation=quantisation, cache_dir=cache, progress=False, **options)


def weights(base: LoadedBase) -> dict[str, torch.Tensor]:
    return base.model.state_dict()


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("quantisation", QUANTISATIONS)
def test_the_model_is_frozen_in_the_dtype_of_the_machine_and_its_tokenizer_is_the_sources(
    checkpoint, tmp_path, quantisation
):
    base = load(checkpoint, tmp_path, quantisation)
    parameters = list(base.model.parameters())
    assert {p.dtype for p in parameters} == {convert.compute_dtype("cpu")}
    assert not any(p.requires_grad for p in parameters)
    assert not base.model.training
    assert base.model.config._attn_implementation == "sdpa"
    assert base.model.lm_head.weight is base.model.model.embed_tokens.weight
    original = tiny_tokenizer()
    for text in [*CORPUS, " \n\té 日本語 🙂<|end|>"]:
        assert base.tokenizer(text).input_ids == original(text).input_ids


def test_the_dtype_may_be_asked_for(checkpoint, tmp_path):
    for dtype in ("float32", "bfloat16"):
        model = load(checkpoint, tmp_path, "int8", dtype=dtype, keep_dequantised=True).model
        assert {p.dtype for p in model.parameters()} == {getattr(torch, dtype)}


@pytest.mark.parametrize("quantisation", QUANTISATIONS)
def test_the_second_load_reads_the_same_bits_and_builds_nothing(
    checkpoint, tmp_path, quantisation, monkeypatch
):
    first = load(checkpoint, tmp_path, quantisation)
    monkeypatch.setattr(bases, "quantise", lambda *_: pytest.fail("quantised again"))
    second = load(checkpoint, tmp_path, quantisation)
    assert second.identity == first.identity
    assert equal(weights(first), weights(second))


def test_unquantised_weights_are_the_sources(checkpoint, tmp_path):
    source = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.bfloat16)
    assert equal(weights(load(checkpoint, tmp_path, "none")), source.state_dict())
    assert not list(tmp_path.iterdir()), "a folder needs no copy of its weights"


def test_int8_weights_are_within_half_a_step_of_the_source(checkpoint, tmp_path):
    source = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.bfloat16).state_dict()
    for name, weight in weights(load(checkpoint, tmp_path, "int8")).items():
        original = source[name].float()
        if "proj" in name:
            step = original.abs().amax(1, keepdim=True) / 127
            # The rounding of bf16, and of the fp16 in which bitsandbytes quantises.
            rounding = original.abs() * 2**-7
            assert ((weight.float() - original).abs() <= step / 2 + rounding).all()
            assert not torch.equal(weight.float(), original)
        else:
            assert torch.equal(weight, source[name]), f"{name} is not to be quantised"


def test_nf4_weights_take_sixteen_values_a_block_and_are_near_the_source(checkpoint, tmp_path):
    source = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.bfloat16).state_dict()
    for name, weight in weights(load(checkpoint, tmp_path, "nf4")).items():
        original = source[name].float()
        if "proj" in name:
            blocks = weight.reshape(-1, 64)
            assert all(len(block.unique()) <= 16 for block in blocks)
            scale = original.reshape(-1, 64).abs().amax(1, keepdim=True)
            error = (blocks.float() - original.reshape(-1, 64)).abs()
            # Half of the widest gap between NF4's levels (-1 and -0.696), and what quantising the
            # scales adds.
            assert (error <= scale * (0.152 + 0.02)).all()
        else:
            assert torch.equal(weight, source[name]), f"{name} is not to be quantised"


def test_shapes_that_nf4_gets_wrong_on_the_cpu_are_refused(tmp_path):
    tiny_model("llama", torch.bfloat16).save_pretrained(tmp_path / "narrow")
    tiny_tokenizer().save_pretrained(tmp_path / "narrow")
    with pytest.raises(UnusableBaseError, match=r"narrow cannot be quantised to nf4: .* has 32 inputs"):
        load(tmp_path / "narrow", tmp_path / "cache", "nf4")


@pytest.mark.parametrize("quantisation", ["int8", "nf4"])
def test_dequantised_layers_hold_what_the_quantised_ones_stand_for(checkpoint, tmp_path, quantisation):
    plain = load(checkpoint, tmp_path, quantisation, keep_dequantised=True).model
    kept = load(checkpoint, tmp_path, quantisation, keep_dequantised=False).model
    layers = {name: layer for name, layer in kept.named_modules() if isinstance(layer, convert._BNB_LINEARS)}
    assert len(layers) == 7 * kept.config.num_hidden_layers
    for name, layer in layers.items():
        if quantisation == "int8":
            expected = bnb.functional.int8_vectorwise_dequant(layer.weight.data, layer.weight.SCB)
        else:
            expected = bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
        assert torch.equal(plain.get_submodule(name).weight, expected.to(torch.bfloat16))


@pytest.mark.parametrize("quantisation", ["int8", "nf4"])
def test_the_cache_holds_what_quantising_gave(checkpoint, tmp_path, quantisation):
    fresh = convert.load_model(
        checkpoint, "cpu", quantization_config=convert._bitsandbytes_config(quantisation)
    )
    convert.dequantise(fresh)
    assert equal(fresh.state_dict(), weights(load(checkpoint, tmp_path, quantisation, keep_dequantised=True)))


@pytest.mark.parametrize(("free", "dequantised"), [(2**40, True), (0, False)])
def test_layers_stay_quantised_where_memory_is_short(checkpoint, tmp_path, monkeypatch, free, dequantised):
    monkeypatch.setattr(bases, "available_bytes", lambda: free)
    layer = load(checkpoint, tmp_path, "int8").model.model.layers[0].mlp.up_proj
    assert isinstance(layer, bnb.nn.Linear8bitLt) is not dequantised


def test_a_base_that_nobody_measured_gets_int8(checkpoint, tmp_path):
    assert load(checkpoint, tmp_path).identity.quantisation == "int8"


def test_the_revision_is_the_content(checkpoint, tmp_path):
    copy = tmp_path / "renamed"
    shutil.copytree(checkpoint, copy)
    before = load(checkpoint, tmp_path / "cache", "none").identity
    (copy / "notes.md").write_text("not part of the checkpoint")
    assert load(copy, tmp_path / "cache", "none").identity.revision == before.revision
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-3}))
    after = load(copy, tmp_path / "cache", "int8")
    assert after.identity.revision != before.revision
    assert after.model.config.rms_norm_eps == 1e-3


def test_a_damaged_cache_is_built_again(checkpoint, tmp_path, caplog):
    expected = weights(load(checkpoint, tmp_path, "int8"))
    (file,) = tmp_path.rglob("model.safetensors")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        again = load(checkpoint, tmp_path, "int8")
    assert "model.safetensors does not match its digest" in caplog.text
    assert equal(weights(again), expected)


def test_a_disk_that_fills_up_while_the_model_is_written_leaves_no_half_file(
    checkpoint, tmp_path, monkeypatch
):
    def fail(checkpoint: Path, folder: Path, *_: object) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(bases, "quantise", fail)
        with pytest.raises(StorageFullError, match="tiny-llama"):
            load(checkpoint, tmp_path, "int8")
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".lock"]
    assert load(checkpoint, tmp_path, "int8").identity.quantisation == "int8"


def test_a_disk_with_too_little_room_is_refused_before_the_work(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(bases, "quantise", lambda *_: pytest.fail("quantised all the same"))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: namedtuple("Usage", "total used free")(100, 99, 1))
    with pytest.raises(StorageFullError, match="tiny-llama needs"):
        load(checkpoint, tmp_path, "int8")


def test_two_processes_may_start_on_an_empty_cache(checkpoint, tmp_path, processes):
    ours, theirs = processes.Pipe()
    loaders = [
        processes.Process(target=load_and_digest, args=(checkpoint, tmp_path, theirs)) for _ in range(2)
    ]
    for loader in loaders:
        loader.start()
    assert ours.recv() == ours.recv()
    for loader in loaders:
        loader.join()
    assert (tmp_path / "builds").read_text() == "built\n"


def _without_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def _broken_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def _only_pickled_weights(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _unknown_architecture(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "nobody-knows"}')


def _own_code(folder: Path) -> None:
    own = {"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}}
    (folder / "config.json").write_text(json.dumps(own))


def _already_quantised(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps({**config, "quantization_config": {"quant_method": "awq"}})
    )


def _without_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()


@pytest.mark.parametrize(
    "spoil",
    [
        _without_config,
        _broken_config,
        _only_pickled_weights,
        _unknown_architecture,
        _own_code,
        _already_quantised,
        _without_tokenizer,
    ],
)
@pytest.mark.parametrize("quantisation", ["int8", "none"])
def test_what_is_no_usable_checkpoint_is_refused_with_its_name(checkpoint, tmp_path, spoil, quantisation):
    folder = tmp_path / "spoilt"
    shutil.copytree(checkpoint, folder)
    spoil(folder)
    with pytest.raises(UnusableBaseError, match="spoilt"):
        load(folder, tmp_path / "cache", quantisation)
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_a_hub_base_is_pinned_to_its_commit(checkpoint, tmp_path, monkeypatch):
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--acme--tiny"
    shutil.copytree(checkpoint, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    base = load_base("acme/tiny", cache_dir=tmp_path / "cache", progress=False)
    assert (base.identity.id, base.identity.revision) == ("acme/tiny", commit)
    assert equal(weights(base), weights(load(checkpoint, tmp_path / "other", "int8")))


def test_a_hub_base_that_cannot_be_had_is_a_clear_error(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(FetchError, match="acme/absent@main was not downloaded"):
        load_base("acme/absent", cache_dir=tmp_path, progress=False)


def test_the_cache_folder_can_be_set_in_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("ABMLL_CACHE_DIR", str(tmp_path))
    assert default_cache_dir() == tmp_path
    monkeypatch.delenv("ABMLL_CACHE_DIR")
    assert default_cache_dir().name == "abmll"


def test_libraries_are_kept_quiet_and_left_as_they_were(checkpoint, tmp_path, capfd):
    before = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    capfd.readouterr()
    load(checkpoint, tmp_path, "int8")
    assert capfd.readouterr() == ("", "")
    assert (transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()) == before


def test_the_written_file_is_quantised(checkpoint, tmp_path):
    load(checkpoint, tmp_path, "int8")
    (file,) = tmp_path.rglob("model.safetensors")
    dtypes = {name: tensor.dtype for name, tensor in load_file(file).items()}
    assert dtypes["model.layers.0.mlp.up_proj.weight"] == torch.int8
    assert dtypes["model.embed_tokens.weight"] == torch.bfloat16
