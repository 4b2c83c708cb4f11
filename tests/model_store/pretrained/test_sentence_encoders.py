"""Loading a sentence encoder by name: a tiny random one from a folder.

`tests/e2e` runs the real one.
"""

import json
from pathlib import Path

import pytest
import torch

from abmll.similarity.sentence_encoder import SentenceEncoder
from model_store.errors import UnknownBaseError, UnusableBaseError
from model_store.pretrained.sentence_encoders import load_sentence_encoder
from tests.tiny import tiny_sentence_encoder

TEXTS = ["the film was wonderful and the actors were great", "Paris"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model, tokenizer = tiny_sentence_encoder()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("says", "reads"), [(None, 48), (4, 4)])
def test_an_encoder_from_a_folder_reads_as_much_as_it_was_trained_for(
    says: int | None, reads: int, folder: Path
) -> None:
    if says is not None:
        (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": says}))
    encoder = load_sentence_encoder(str(folder), dtype=torch.float32, progress=False)
    assert encoder is not None
    expected = SentenceEncoder(*tiny_sentence_encoder(), max_tokens=reads)(TEXTS)
    torch.testing.assert_close(encoder(TEXTS), expected)


def test_no_name_is_no_encoder() -> None:
    assert load_sentence_encoder(None) is None


def test_pickled_weights_are_never_loaded(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UnusableBaseError, match="no safetensors weights"):
        load_sentence_encoder(str(folder), progress=False)


def test_an_unknown_name_is_an_error_that_names_the_known_one() -> None:
    with pytest.raises(UnknownBaseError, match="all-minilm-l6-v2"):
        load_sentence_encoder("no such encoder", progress=False)
