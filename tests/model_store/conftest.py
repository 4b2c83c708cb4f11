import multiprocessing
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from abmll.decoder.layout import Site
from abmll.posterior.posteriors import GlobalPosterior
from tests.tiny import CONFIGS, make_config, tiny_tokenizer


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a tiny bf16 Llama (tied embeddings) and its tokenizer.

    Tests must not change it.
    """
    config = CONFIGS["llama"]()
    # NF4 has blocks of 64 weights.
    config.update({"hidden_size": 64, "intermediate_size": 128, "head_dim": 16})
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("source") / "tiny-llama"
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def processes() -> ForkServerContext:
    """Return a context that starts processes without importing torch in each."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.model_store.processes"])
    return context


@pytest.fixture
def prior() -> GlobalPosterior:
    config = make_config(rank=2, modules=("q", "down"), first_layer=1)
    sites = tuple(
        Site(layer, m, d_in, d_out) for layer in (1, 2) for m, d_in, d_out in (("q", 8, 8), ("down", 12, 8))
    )
    untrained = GlobalPosterior.untrained(config, sites)
    return GlobalPosterior(
        config, sites, torch.randn(len(untrained.values), generator=torch.Generator().manual_seed(0))
    )
