"""Tokenizers of other vocabularies than CLIP's, against the libraries that wrote their files."""

import hashlib
import json
import pickle
import sys

import numpy as np
import pytest
from library_features import inputs
from tiny import check_names

from detailclip_jax.config import default, run_config
from detailclip_jax.data import vocabularies
from detailclip_jax.data.tokenizer import Tokenizer
from detailclip_jax.data.vocabularies import FileTokenizer, around, record, tokenizer_of
from detailclip_jax.inference.model import _reading
from detailclip_jax.interop import hub_configs, hub_tokenizer, hub_vocabulary
from detailclip_jax.training import adopted_config

tokenizers = pytest.importorskip("tokenizers")

WORDS = ["a", "frog", "and", "bus"]


def word_file(folder, words=WORDS, padding="", before="", first=("<unk>", "</s>"), then=None):
    """A tokenizer.json of whole words, with </s> after a text; `padding` is named by the file beside it.

    `then` changes the tokenizer before it is saved.
    """
    folder.mkdir(exist_ok=True)
    vocabulary = {word: number for number, word in enumerate([*first, *words])}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    special = [(token, vocabulary[token]) for token in ("</s>", *filter(None, [before]))]
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{before} $A </s>".strip(), special_tokens=special
    )
    if then:
        then(made)
    made.save(str(folder / "tokenizer.json"))
    if padding:
        (folder / "tokenizer_config.json").write_text(json.dumps({"pad_token": padding}))
    return folder / "tokenizer.json"


def config_with(file, length=6, size=40, pooling="last", **text_style):
    config = default()
    config.data.tokenizer, config.model.context_length, config.model.vocab_size = str(file), length, size
    config.model.text_style.update(pooling=pooling, causal=pooling == "eot", **text_style)
    return config


def end_file(folder, padding="<unk>", **options):
    """A file whose end token has the largest id, as the pooling "eot" needs."""
    return word_file(folder, [*WORDS, "</s>"], padding, first=("<unk>",), **options)


@pytest.mark.parametrize(("before", "first"), [("", []), ("<unk>", [0])])
def test_words_of_another_vocabulary_are_moved_behind_its_start(tmp_path, before, first):
    file = word_file(tmp_path, padding="<unk>" if before else "</s>", before=before)
    tokenizer, draws = vocabularies.tokenizer_of(config_with(file, 8)), np.random.default_rng(0)
    rows, pad = [tokenizer.row("a frog", draws)[0].tolist() for _ in range(60)], 0 if before else 1
    room = 5 - len(first)
    expected = [[*first, *[pad] * n, 2, 3, 1, *[pad] * (room - n)] for n in range(room + 1)]
    assert sorted(expected) == sorted(map(list, {*map(tuple, rows)}))


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


@pytest.mark.parametrize("padding", [("and", 4), ("</s>", 1)])
def test_the_file_may_say_what_fills_a_text_but_not_where_it_is_cut(tmp_path, padding):
    def then(made):
        made.enable_padding(length=4, pad_id=padding[1], pad_token=padding[0])
        made.enable_truncation(3)

    ours = FileTokenizer(str(word_file(tmp_path, then=then)), 5, 40, "last")
    assert ours(["bus"]).tolist() == [[5, 1, *[padding[1]] * 3]]
    assert ours(["a frog a frog a frog"]).tolist() == [[2, 3, 2, 3, 1]] and ours.num_truncated == 1


def test_clip_is_the_default():
    config = default()
    assert type(tokenizer_of(config)) is Tokenizer and tokenizer_of(config, keep_eot=False).keep_eot is False
    assert around([7, 3, 4, 9], [3, 4]) == ((7,), (9,))
    assert around([7, 3, 9], [3, 4]) is around([7, 9], []) is None


def refused(config, error, match):
    with pytest.raises(error, match=match):
        tokenizer_of(config).check()


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("$A " * 100_000, r"makes 100,000 tokens of the letter a, the limit is 16; give the file of the model's own"),
        ("$A" + " </s>" * 6, r"puts 6 tokens around a text, which leave no room for a word in 6; give the file"),
        ("$A" + " </s>" * 100_000, r"puts 100,000 tokens around a text"),
    ],
    ids=["text", "end", "ends"],
)
def test_a_file_that_repeats_a_text_or_its_end_is_refused_before_the_first_text(tmp_path, template, said):
    def repeat(made):
        made.post_processor = tokenizers.processors.TemplateProcessing(
            single=template.strip(), special_tokens=[("</s>", 1)]
        )

    config = config_with(word_file(tmp_path / "vocabulary", padding="<unk>", then=repeat))
    refused(config, ValueError, said)


def test_a_text_that_the_library_panics_at_is_an_error_that_names_the_file(tmp_path):
    """A panic is no Exception, so it would pass by all that catches one."""
    backtracking = tokenizers.normalizers.Replace(tokenizers.Regex("(?:x|x)*[bc]$"), "")
    file = word_file(tmp_path, padding="</s>", then=lambda made: setattr(made, "normalizer", backtracking))
    ours = tokenizer_of(config_with(file))
    assert ours.decode(ours.encode("a frog")) == "a frog"
    with pytest.raises(ValueError, match=r"tokenizer\.json is not .* tokenizers: .*retry-limit"):
        ours.encode("c" + "x" * 60)


def test_files_that_do_not_fit_are_named(tmp_path):
    refused(config_with(tmp_path / "none.json"), FileNotFoundError, r"data\.tokenizer .*none\.json is not a file")
    refused(config_with("bert"), ValueError, "'bert' is neither 'clip' nor a file of .json or .model")
    refused(config_with("spiece.model"), ValueError, "give the model's tokenizer.json")
    (tmp_path / "other.json").write_text("{}")
    refused(config_with(tmp_path / "other.json"), ValueError, "is not a file of the library tokenizers")
    file = word_file(tmp_path / "a")
    refused(config_with(file), ValueError, "does not say which token fills a text.*tokenizer_config.json")
    file = word_file(tmp_path / "b", padding="</s>")
    refused(config_with(file, size=5), ValueError, "has 6 tokens, but the model 5")


@pytest.mark.parametrize("model, match", [("BPE", "does not keep the words"), ("WordLevel", "no token for unknown")])
def test_a_file_that_does_not_know_the_word_a_is_refused(tmp_path, model, match):
    """Without an unknown token byte pairs drop the word, and the model of whole words is an error of the library."""
    kinds = {"BPE": tokenizers.models.BPE({"b": 3}, []), "WordLevel": tokenizers.models.WordLevel({"b": 3})}
    file = word_file(tmp_path, padding="</s>", then=lambda made: setattr(made, "model", kinds[model]))
    refused(config_with(file), ValueError, match)


def without_unknown(kind):
    """Models that know the letter a, and whose token for unknown words is missing in their vocabulary."""
    return {
        "WordLevel": lambda: tokenizers.models.WordLevel({"a": 2, "frog": 3}, unk_token="<unk>"),
        "WordPiece": lambda: tokenizers.models.WordPiece({"a": 2, "frog": 3}, unk_token="<unk>"),
        "Unigram": lambda: tokenizers.models.Unigram([("x", 0.0), ("</s>", 0.0), ("a", 0.0)], None),
        "BPE": lambda: tokenizers.models.BPE({"a": 2, "b": 3}, [], unk_token="<unk>"),
    }[kind]()


@pytest.mark.parametrize("kind", ["WordLevel", "WordPiece", "Unigram", "BPE"])
def test_a_file_that_is_an_error_at_an_unknown_word_is_refused_before_the_first_caption(tmp_path, kind):
    file = word_file(tmp_path, padding="</s>", then=lambda made: setattr(made, "model", without_unknown(kind)))
    with pytest.raises(ValueError) as error:
        record(config_with(file))
    check_names(error.value, str(file), "unknown words", '"unk_token"', "Unigram")


def test_byte_pairs_without_an_unknown_token_leave_unknown_letters_out(tmp_path):
    def then(made):
        made.model = tokenizers.models.BPE({"a": 2, "b": 3}, [])
        made.enable_padding(pad_id=1, pad_token="</s>")

    file = word_file(tmp_path, then=then)
    assert tokenizer_of(config_with(file, length=4))(["a zoo b"]).tolist() == [[2, 3, 1, 1]]


def test_the_size_is_the_largest_id_and_one(tmp_path):
    """Ids of a file may have gaps."""
    file = word_file(tmp_path, padding="</s>")
    saved = json.loads(file.read_text())
    saved["model"]["vocab"]["bus"] = 39
    file.write_text(json.dumps(saved))
    refused(config_with(file, size=39), ValueError, "has 40 tokens, but the model 39")
    assert tokenizer_of(config_with(file))(["bus"])[0, 0] == 39


def test_the_pooling_at_the_end_token_needs_the_largest_id(tmp_path):
    ours = tokenizer_of(config_with(end_file(tmp_path / "a"), pooling="eot"))
    assert ours(["a bus"]).argmax(-1).tolist() == [2]
    file = word_file(tmp_path / "b", padding="<unk>")
    refused(config_with(file, pooling="eot"), ValueError, r"pooling 'eot'.*largest is 5, the end \(1,\)")
    starts = end_file(tmp_path / "c", before="</s>")
    refused(config_with(starts, pooling="eot"), ValueError, r"pooling 'eot'.*the start \(5,\)")
    fills = end_file(tmp_path / "d", then=lambda made: made.enable_padding(pad_id=7, pad_token="pad"))
    refused(config_with(fills, pooling="eot"), ValueError, r"pooling 'eot'.*the padding 7")


def test_the_mean_over_words_needs_the_padding_that_it_hides(tmp_path):
    refused(
        config_with(word_file(tmp_path, padding="</s>"), pooling="mean"), ValueError, "with id 1, but .* hides id 0"
    )
    tokenizer_of(config_with(word_file(tmp_path, padding="<unk>"), pooling="mean")).check()


def test_the_case_is_that_of_the_file_unless_the_published_code_lowers_it(tmp_path):
    words = ["Frog", "frog", "</s>"]
    file = word_file(tmp_path, words, "<unk>", first=("<unk>",))
    assert tokenizer_of(config_with(file, pooling="eot"))(["Frog"])[0, 0] == 1
    assert tokenizer_of(config_with(file, pooling="last"))(["Frog"])[0, 0] == 2


def test_a_special_token_in_a_text_is_words(tmp_path):
    file = end_file(tmp_path, then=lambda made: made.add_special_tokens(["</s>"]))
    assert tokenizer_of(config_with(file, pooling="eot")).encode("a </s> bus").count(5) == 1


def test_a_file_that_is_too_large_or_no_file_is_refused(tmp_path, monkeypatch):
    file = word_file(tmp_path, padding="</s>")
    monkeypatch.setattr(vocabularies, "MAX_BYTES", 100)
    refused(config_with(file), ValueError, "data.tokenizer: too large: .* the limit is 100")
    refused(config_with(tmp_path / "no.json"), FileNotFoundError, "no.json is not a file")


@pytest.mark.parametrize("content", ["[]", "{", "\xff"])
def test_a_damaged_file_beside_it_is_named(tmp_path, content):
    file = word_file(tmp_path)
    (tmp_path / "tokenizer_config.json").write_bytes(content.encode("latin-1"))
    refused(config_with(file), ValueError, "tokenizer_config.json is damaged")


def test_cut_texts_keep_their_end(tmp_path):
    config = config_with(word_file(tmp_path, padding="</s>"))
    with pytest.raises(ValueError, match=r"data\.keep_eot=False .*--config\.data\.keep_eot=True"):
        tokenizer_of(config, keep_eot=False)


def test_the_record_has_the_place_and_the_digest(tmp_path, monkeypatch):
    file = word_file(tmp_path, padding="</s>")
    monkeypatch.chdir(tmp_path)
    made = adopted_config.adopt(config_with("tokenizer.json"))
    digest = hashlib.sha256(file.read_bytes()).hexdigest()[:12]
    assert (made.data.tokenizer, made.data.tokenizer_digest) == (str(file), digest)
    moved = run_config.from_json(run_config.to_json(made))
    moved.data.tokenizer = str(word_file(tmp_path / "b", padding="</s>"))
    assert not run_config.differences(made, moved)
    tokenizer_of(moved).check()
    word_file(tmp_path, ["a", "bus"], padding="</s>")
    refused(made, ValueError, r"the file at .*tokenizer\.json is not the one this model was trained with")
    with pytest.raises(ValueError, match="is not the one"):
        record(made)


def test_embeddings_are_marked_by_the_tokenizer_and_the_pooling(tmp_path):
    file, usual = end_file(tmp_path), _reading(default())
    config = config_with(file, pooling="eot")
    config.model.context_length = default().model.context_length
    before = _reading(config)
    assert before != usual
    end_file(tmp_path, then=lambda made: made.enable_truncation(3))
    assert _reading(config) != before
    config.data.tokenizer = "clip"
    assert _reading(config) == usual
    config.model.text_style.pooling = "last"
    assert _reading(config) != usual


def test_a_model_of_a_file_is_not_exported_with_our_tokenizer(tmp_path):
    config = default()
    assert hub_tokenizer.fits(config)
    config.data.tokenizer = str(end_file(tmp_path))
    assert not hub_tokenizer.fits(config)


def test_an_export_states_the_end_token_of_the_file(tmp_path):
    """The model may have more token ids than the file; transformers pools at the stated one."""
    config = config_with(end_file(tmp_path), pooling="eot")
    config.model.image_size, config.model.size = 32, "tiny"
    end = vocabularies.pieces_of(config.data.tokenizer).size - 1
    content = hub_configs.huggingface_config(config)
    assert content["text_config"]["eos_token_id"] == end == 5 and content["text_config"]["bos_token_id"] is None
    entry = {"file": "tokenizer.json", "digest": vocabularies.digest_of(config.data.tokenizer), "end": end}
    assert content["vocabulary"] == hub_configs.state_dict_card(config)["vocabulary"] == entry
    hub_configs.huggingface_options(content, {})
    tokens = inputs(config).tokens
    assert tokens.max() == end and (tokens == end).sum(-1).tolist() == [1, 1]
    assert hub_vocabulary.stated(default()) == {}
    assert hub_configs.huggingface_config(default())["text_config"]["eos_token_id"] == 49407


def test_an_export_without_the_file_is_refused(tmp_path):
    config = config_with(tmp_path / "gone.json", pooling="eot")
    with pytest.raises(FileNotFoundError, match=r"gone\.json is not a file"):
        hub_configs.state_dict_card(config)


def test_a_library_that_is_missing_is_named(tmp_path, monkeypatch):
    file = word_file(tmp_path, padding="</s>")
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    refused(config_with(file), ValueError, "needs the library tokenizers: pip install tokenizers")


def pieces_file(folder, **options):
    library = pytest.importorskip("sentencepiece")
    (folder / "texts").write_text("a frog and a bus\na bus and a frog\n" * 20)
    prefix = str(folder / "pieces")
    library.SentencePieceTrainer.train(
        input=str(folder / "texts"), model_prefix=prefix, vocab_size=20, hard_vocab_limit=False, **options
    )
    return folder / "pieces.model", library.SentencePieceProcessor(model_file=f"{prefix}.model")


def test_sentencepiece_gives_the_words_alone(tmp_path):
    file, library = pieces_file(tmp_path, pad_id=0, eos_id=1, unk_id=2, bos_id=-1)  # as T5, and so TIPS, has them
    ours = tokenizer_of(config_with(file, pooling="mean"))
    expected = library.encode("a frog")[:6]
    assert 0 not in expected
    assert ours(["A frog"])[0].tolist() == expected + [0] * (6 - len(expected))
    assert ours.decode(ours(["a bus"])[0]) == "a bus"


def test_sentencepiece_whose_padding_is_a_word_is_refused(tmp_path):
    file, library = pieces_file(tmp_path)  # the library's own ids
    assert library.unk_id() == 0
    refused(
        config_with(file, pooling="mean"), ValueError, "id 0, which fills a text, is the word or unknown piece '<unk>'"
    )
