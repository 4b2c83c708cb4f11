"""Measure time and peak memory of adapt and predict with Llama-3-8B's shape in NF4 on the CPU.

    python -m benchmarks.scale_8b
    python -m benchmarks.scale_8b --quick     # two narrow layers

The model is built layer by layer and is never dense in memory. Its weights are random, so the
answers mean nothing; time and memory are those of a real model of the shape.
"""

from __future__ import annotations

import ctypes
import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import bitsandbytes as bnb
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from abmll.adaptation.run import batch_order
from abmll.adaptation.settings import AdaptSettings
from abmll.decoder.layout import AdapterLayout
from abmll.decoder.rows import packed_length
from abmll.memory_plan import measure_costs
from abmll.model import FewShotModel
from abmll.posterior.config import PosteriorConfig
from abmll.text.tasks import Example, Query
from benchmarks import common
from model_store.pretrained.bases import load_base
from model_store.pretrained.convert import compute_dtype
from model_store.process_memory import return_large_blocks
from service.schemas import demo


@dataclass(frozen=True)
class Shape:
    """Sizes of a Llama decoder; the defaults are Llama-3-8B's."""

    layers: int = 32
    hidden: int = 4096
    intermediate: int = 14336
    heads: int = 32
    kv_heads: int = 8
    vocabulary: int = 128_256
    tied: bool = False  # whether the head is the embedding

    def config(self) -> LlamaConfig:
        """Return the configuration of `transformers` for this shape."""
        return LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            max_position_embeddings=8192,
            rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
            tie_word_embeddings=self.tied,
        )


def main() -> None:
    parser = common.arguments(__doc__, repeats=1)
    full = Shape()
    parser.add_argument("--layers", type=int, default=full.layers)
    parser.add_argument("--hidden", type=int, default=full.hidden)
    parser.add_argument("--intermediate", type=int, default=full.intermediate)
    parser.add_argument("--heads", type=int, default=full.heads)
    parser.add_argument("--kv-heads", type=int, default=full.kv_heads)
    parser.add_argument("--vocabulary", type=int, default=full.vocabulary)
    parser.add_argument("--first-layer", type=int, help="first adapted layer; by default the middle one")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--examples", type=int, default=10)
    parser.add_argument("--samples", type=int, default=4)
    options = parser.parse_args()
    if options.quick:
        options.layers, options.hidden, options.intermediate = 2, 256, 512
        options.heads, options.kv_heads, options.vocabulary = 4, 2, 49_152
    shape = Shape(
        options.layers,
        options.hidden,
        options.intermediate,
        options.heads,
        options.kv_heads,
        options.vocabulary,
    )
    return_large_blocks()  # as a worker does
    torch.set_num_threads(options.threads)
    tokenizer = load_base("smollm2-135m-instruct", progress=False).tokenizer
    forget_the_build()
    libraries_bytes = common.resident_and_peak_bytes()[0]
    stages = Stages()
    built = stages.run("build, quantised layer by layer", lambda: build(shape, options.seed))
    first_layer = shape.layers // 2 if options.first_layer is None else options.first_layer
    settings = AdaptSettings(steps=options.steps)
    model = stages.run(
        "wrap",
        lambda: FewShotModel(
            built, tokenizer, PosteriorConfig(AdapterLayout(first_layer=first_layer)), defaults=settings
        ),
    )
    costs = measure_costs(model.backbone, model.prior)
    labels = tuple(demo.OPTIONS)
    support = [Example(text, label, labels) for text, label in demo.SUPPORT[: options.examples]]
    step_tokens = most_step_tokens(model, support, options.seed)
    queries = [Query(text, labels) for text in demo.INPUTS]
    chunk_tokens = model.begin_predict(None, queries, samples=options.samples).next_tokens
    planned = libraries_bytes + costs.peak_bytes(1, step_tokens, chunk_tokens, options.samples)
    forget_the_build()
    print(f"planned peak {planned / 2**30:.2f} GiB: {costs.plan(8 * 2**30).describe()}", flush=True)
    phi = stages.run("adapt", lambda: model.adapt(support, seed=options.seed)).posterior
    found = stages.run(
        "predict", lambda: model.predict(phi, queries, samples=options.samples, seed=options.seed)
    )
    if any(abs(sum(p) - 1) > 1e-6 for p in common.probabilities(found)):
        raise SystemExit("the options' probabilities do not add up to one")
    about = (
        f"{shape}, random weights; decoder linears NF4, embeddings and head {built.dtype}. LoRA in layers {first_layer} and up: "
        f"{phi.values.nbytes / 2**20:.0f} MiB a posterior. {len(support)} examples, {options.steps} steps, "
        f"{len(queries)} queries, S = {options.samples}."
    )
    measured = common.resident_and_peak_bytes()[1]
    about += (
        f" Planned peak {planned / 2**30:.2f} GiB ({libraries_bytes / 2**30:.2f} of it libraries), measured "
        f"{measured / 2**30:.2f}: {100 * (measured / planned - 1):+.1f} %."
    )
    rows = common.table(["stage", "seconds", "peak GiB by its end"], stages.rows)
    data = {
        "shape": asdict(shape), "stages": stages.rows, "planned_bytes": planned, "measured_bytes": measured,
        "costs": asdict(costs), "step_tokens": step_tokens, "chunk_tokens": chunk_tokens,
    }  # fmt: skip
    common.write_results(
        "scale_8b", "A model of Llama-3-8B's shape on the CPU", [about], [rows], data, options, built.dtype
    )


def most_step_tokens(model: FewShotModel, support: Sequence[Example], seed: int) -> int:
    """Return the tokens of the adaptation's largest step."""
    lengths = [packed_length(example.prompt) for example in model.encode_support(support)]
    settings = model.defaults
    batches = batch_order(len(lengths), settings.batch_size, settings.steps, seed)
    return max(sum(lengths[i] for i in batch) for batch in batches)


def forget_the_build() -> None:
    """Give freed memory back to the system, and start a new peak.

    A server does not draw and quantise dense weights, so their memory must not count.
    """
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    common.reset_peak()


class Stages:
    """Seconds of each stage, and the peak memory of the process by its end."""

    def __init__(self) -> None:
        self.rows: list[list[Any]] = []

    def run(self, name: str, work: Callable[[], Any]) -> Any:
        """Do one stage, and return its result."""
        started = time.perf_counter()
        result = work()
        row = [name, time.perf_counter() - started, common.resident_and_peak_bytes()[1] / 2**30]
        print(f"{row[0]}: {row[1]:.1f} s, peak {row[2]:.2f} GiB", flush=True)
        self.rows.append(row)
        return result


def build(shape: Shape, seed: int = 0, device: str = "cpu") -> LlamaForCausalLM:
    """Return a random model on `device` whose decoder's linear layers are NF4.

    Each is drawn dense, quantised and freed in turn. All else is in the dtype that suits the
    machine, as in a base that is loaded.
    """
    generator, dtype = torch.Generator(device).manual_seed(seed), compute_dtype(device)
    config = shape.config()
    with torch.device("meta"):
        model = LlamaForCausalLM(config).to(dtype)
    for path, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and path != "lm_head":
            model.set_submodule(path, quantised_linear(module.in_features, module.out_features, generator))
        elif isinstance(module, nn.Linear | nn.Embedding):
            module.weight = frozen(
                random_weight(*map(int, module.weight.shape), generator=generator).to(dtype)
            )
        elif getattr(module, "weight", None) is not None:  # norms
            module.weight = frozen(torch.ones(module.weight.shape, dtype=dtype, device=device))
    if shape.tied:
        model.lm_head.weight = model.model.embed_tokens.weight
    model.model.rotary_emb = LlamaRotaryEmbedding(config).to(device)  # its frequencies were on `meta`
    return model.eval().requires_grad_(False)


def quantised_linear(d_in: int, d_out: int, generator: torch.Generator) -> bnb.nn.Linear4bit:
    """Return a random linear layer in NF4 with double quantisation, as `model_store` makes them.

    It lies on the device of `generator`.
    """
    with torch.device("meta"):
        layer = bnb.nn.Linear4bit(
            d_in, d_out, bias=False, compute_dtype=compute_dtype(str(generator.device)), quant_type="nf4"
        )
    dense = random_weight(d_out, d_in, generator=generator)
    # Moving to a device is what quantises.
    weight = bnb.nn.Params4bit(dense, requires_grad=False, quant_type="nf4", module=layer)
    layer.weight = weight.to(generator.device)
    return layer


def random_weight(rows: int, columns: int, *, generator: torch.Generator) -> torch.Tensor:
    """Draw a normal weight [rows, columns], scaled so that activations keep their size."""
    weight = torch.empty(rows, columns, dtype=torch.bfloat16, device=generator.device)
    return weight.normal_(0, columns**-0.5, generator=generator)


def frozen(weight: torch.Tensor) -> nn.Parameter:
    """Return a parameter that is not trained."""
    return nn.Parameter(weight, requires_grad=False)


if __name__ == "__main__":
    main()
