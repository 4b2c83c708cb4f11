import bitsandbytes as bnb
import torch

from benchmarks.scale_8b import Shape, build

SMALL = Shape(layers=2, hidden=128, intermediate=192, heads=4, kv_heads=2, vocabulary=320)


def test_the_decoder_is_nf4_and_computes_what_its_dequantised_weights_do():
    model = build(SMALL)
    layers = {path: m for path, m in model.named_modules() if isinstance(m, bnb.nn.Linear4bit)}
    assert len(layers) == 2 * 7
    assert {layer.weight.quant_state.quant_type for layer in layers.values()} == {"nf4"}
    assert not any(p.is_meta for p in [*model.parameters(), *model.buffers()])
    dense = build(SMALL)
    for path, layer in layers.items():
        weight = bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
        plain = torch.nn.Linear(layer.in_features, layer.out_features, bias=False)
        plain.weight.data = weight.float()
        dense.set_submodule(path, plain)
    ids = torch.arange(12).reshape(1, -1)
    with torch.no_grad():
        expected = dense.float()(ids).logits
        torch.testing.assert_close(model(ids).logits.float(), expected, rtol=0.1, atol=0.1)
