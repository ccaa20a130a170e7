"""Tokenizers of other vocabularies than CLIP's, against the libraries that wrote their files."""

import json
import pickle

import numpy as np
import pytest

from detailclip_jax.config import default
from detailclip_jax.data.tokenizer import Tokenizer
from detailclip_jax.data.vocabularies import FileTokenizer, around, tokenizer_of

tokenizers = pytest.importorskip("tokenizers")

WORDS = ["a", "frog", "and", "bus"]


def word_file(folder, words=WORDS, padding="", before=""):
    """A tokenizer.json of whole words, with </s> after a text; `padding` is named by the file beside it."""
    vocabulary = {word: number for number, word in enumerate(["<unk>", "</s>", *words])}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    special = [(token, vocabulary[token]) for token in ("</s>", *filter(None, [before]))]
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{before} $A </s>".strip(), special_tokens=special
    )
    made.save(str(folder / "tokenizer.json"))
    if padding:
        (folder / "tokenizer_config.json").write_text(json.dumps({"pad_token": padding}))
    return folder / "tokenizer.json"


def config_with(file, length=6, size=40, **text_style):
    config = default()
    config.data.tokenizer, config.model.context_length, config.model.vocab_size = str(file), length, size
    config.model.text_style.update(text_style)
    return config


@pytest.mark.parametrize("before", ["", "<unk>"])
def test_ids_are_those_of_the_library_in_lower_case(tmp_path, before):
    file = word_file(tmp_path, padding="</s>", before=before)
    texts = ["A Frog", "", "a frog and a bus and a frog"]
    library = tokenizers.Tokenizer.from_file(str(file))
    library.enable_truncation(6)
    library.enable_padding(length=6, pad_id=1, pad_token="</s>")
    expected = [encoding.ids for encoding in library.encode_batch([text.lower() for text in texts])]
    ours = tokenizer_of(config_with(file))
    np.testing.assert_array_equal(ours(texts), expected)
    assert ours.num_truncated == 1
    again = pickle.loads(pickle.dumps(ours))  # to the processes that decode images
    np.testing.assert_array_equal(again(texts), expected)
    assert ours.decode(expected[0]) == "a frog" and len(ours.encode(texts[2])) == 9 + bool(before)


def test_the_file_itself_may_say_what_fills_a_text(tmp_path):
    file = word_file(tmp_path, padding="</s>")
    library = tokenizers.Tokenizer.from_file(str(file))
    library.enable_padding(pad_id=4, pad_token="and")
    library.save(str(file))
    assert FileTokenizer(str(file), 4, 40)(["bus"]).tolist() == [[5, 1, 4, 4]]


def test_clip_is_the_default():
    config = default()
    assert type(tokenizer_of(config)) is Tokenizer and tokenizer_of(config, keep_eot=False).keep_eot is False
    assert around([7, 3, 4, 9], [3, 4]) == ((7,), (9,))


def refused(config, error, match):
    with pytest.raises(error, match=match):
        tokenizer_of(config)


def test_files_that_do_not_fit_are_named(tmp_path):
    refused(config_with(tmp_path / "none.json"), FileNotFoundError, r"data\.tokenizer .*none\.json is not a file")
    refused(config_with("bert"), ValueError, "'bert' is neither 'clip' nor a file of .json or .model")
    refused(config_with("spiece.model", pooling="last"), ValueError, "give the model's tokenizer.json")
    (tmp_path / "other.json").write_text("{}")
    refused(config_with(tmp_path / "other.json"), ValueError, "is not a file of the library tokenizers")
    folder = tmp_path / "a"
    folder.mkdir()
    refused(config_with(word_file(folder)), ValueError, "does not say which token fills a text.*tokenizer_config.json")
    folder = tmp_path / "b"
    folder.mkdir()
    refused(config_with(word_file(folder, padding="</s>"), size=5), ValueError, "has 6 tokens, but the model 5")


def test_sentencepiece_gives_the_words_alone(tmp_path):
    library = pytest.importorskip("sentencepiece")
    (tmp_path / "texts").write_text("a frog and a bus\na bus and a frog\n" * 20)
    library.SentencePieceTrainer.train(
        input=str(tmp_path / "texts"), model_prefix=str(tmp_path / "pieces"), vocab_size=20, hard_vocab_limit=False
    )
    ours = tokenizer_of(config_with(tmp_path / "pieces.model", pooling="mean"))
    expected = library.SentencePieceProcessor(model_file=str(tmp_path / "pieces.model")).encode("a frog")[:6]
    assert ours(["A frog"])[0].tolist() == expected + [0] * (6 - len(expected))
    assert ours.decode(ours(["a bus"])[0]) == "a bus"
