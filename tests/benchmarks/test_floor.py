from abmll.text.prompting import EncodedPrompt
from benchmarks.floor import Shapes, packed_tokens, scored_positions

PROMPTS = [EncodedPrompt((1, 2, 3), ((4, 5), (6,))), EncodedPrompt((1,), ((4, 5, 6), (7,)))]
D, KV, INNER, VOCABULARY, RANK = 8, 4, 16, 100, 2
LINEARS = [
    (D, D, "q"),
    (D, KV, "k"),
    (D, KV, "v"),
    (D, D, "o"),
    (D, INNER, "gate"),
    (D, INNER, "up"),
    (INNER, D, "down"),
]
PARAMETERS = sum(d_in * d_out for d_in, d_out, _ in LINEARS)


def multiplications(work):
    return sum(m * k * n * times for (m, k, n), times in work.items())


def test_tokens_and_positions_are_those_of_packed_rows():
    assert packed_tokens(PROMPTS) == (3 + 1) + (1 + 2)
    assert scored_positions(PROMPTS) == (1 + 1) + (1 + 2)


def test_an_adaptation_counts_each_weight_once_a_token_and_pass():
    shapes = Shapes(LINEARS, (3, 2), (D, VOCABULARY), ("q", "down"), RANK, (4, 2))
    tokens, scored, steps = packed_tokens(PROMPTS), scored_positions(PROMPTS), 4
    low_rank = sum(RANK * (d_in + d_out) for d_in, d_out, module in LINEARS if module in {"q", "down"})
    qkv, q_low_rank = D * D + 2 * D * KV, RANK * D
    expected = tokens * 3 * PARAMETERS  # trunk
    expected += steps * tokens * (2 * 2 * PARAMETERS - qkv)  # forward and activation gradients of two layers
    expected += steps * 2 * scored * D * VOCABULARY
    expected += steps * tokens * (2 * 3 * low_rank - q_low_rank)  # forward, activations, weights
    # Behind the last layer's attention, and for its queries, only scored tokens count.
    expected -= steps * (tokens - scored) * (2 * (PARAMETERS - 2 * D * KV) + 3 * low_rank)
    assert multiplications(shapes.adaptation(PROMPTS)) == expected


def test_a_prediction_counts_the_trunk_once_and_the_rest_by_sample():
    shapes = Shapes(LINEARS, (3, 2), (D, VOCABULARY), ("q",), RANK, (4, 2))
    tokens, scored, samples = packed_tokens(PROMPTS), scored_positions(PROMPTS), 5
    each = tokens * 2 * (PARAMETERS + RANK * 2 * D) + scored * D * VOCABULARY
    each -= (tokens - scored) * (PARAMETERS - 2 * D * KV + RANK * 2 * D)
    assert multiplications(shapes.prediction(PROMPTS, samples)) == tokens * 3 * PARAMETERS + samples * each


def test_samples_of_the_readout_add_its_own_rank_r_products_alone():
    modules = ("q", "down")
    everywhere, readout = (
        Shapes(LINEARS, (3, 2), (D, VOCABULARY), modules, RANK, (4, 2), readout=kind)
        for kind in (False, True)
    )
    scored, samples = scored_positions(PROMPTS), 5
    mean = multiplications(everywhere.prediction(PROMPTS, 1))
    added = samples * scored * RANK * (INNER + D)
    assert multiplications(readout.prediction(PROMPTS, samples)) == mean + added
