"""A run's step: one program for each length that captions are cut to."""

import functools
import pathlib
import types
from contextlib import closing

import jax
import numpy as np
import pytest
from tiny import tiny_batch, tiny_config

from detailclip_jax import methods, pretraining
from detailclip_jax.config import run_config
from detailclip_jax.data import caption_lengths
from detailclip_jax.data.caption_lengths import lengths_within
from detailclip_jax.data.caption_selection import sentences_of
from detailclip_jax.data.stickers.scene_source import Stickers
from detailclip_jax.data.tokenizer import Tokenizer
from detailclip_jax.training import session
from detailclip_jax.training.compiled_steps import Programs
from detailclip_jax.training.mesh import make_mesh, put


class Program:
    """Stands for the jitted step: remembers what it was compiled for and ran on."""

    def __init__(self):
        self.compiled, self.ran = [], []

    def compile(self, state, shapes):
        self.compiled.append(shapes["text"].shape)
        return lambda state, batch: self.ran.append(batch["text"].shape) or (state, {})


def step_of(buckets, method="detailclip", keep_eot=True, **text_style):
    config, said, program = tiny_config(method), [], Program()
    config.data.keep_eot = keep_eot
    config.model.text_style.update(text_style)
    config.data.text_buckets = buckets
    alone = make_mesh(jax.devices()[:1])
    experiment = types.SimpleNamespace(
        method=methods.build(config),
        step_after=lambda done: program,
        put=lambda batch: put(batch, alone),
        mesh=alone,
    )
    console = types.SimpleNamespace(live=lambda text: None, say=said.append)
    run = session.Run(config, pathlib.Path(), experiment, None, console, pretraining.PRETRAINING)
    step = Programs(run, session.Clock(), {"x": jax.numpy.zeros(2)}, 0)
    return step, program, said, pretraining.text_lengths(run)


def batch_with(words):
    batch = tiny_batch()
    batch["text"][..., words - 1 :] = 0
    batch["text"][0, 0, words - 1] = 63
    return batch


def test_every_length_is_compiled_once_when_it_first_comes():
    step, program, said, lengths = step_of((8, 4))
    assert lengths == (4, 8, 12) and not program.compiled
    for words in (7, 3, 8, 12, 5):
        step({}, batch_with(words))
    assert program.ran == [(8, 1, 8), (8, 1, 4), (8, 1, 8), (8, 1, 12), (8, 1, 8)]
    assert program.compiled == [(8, 1, 8), (8, 1, 4), (8, 1, 12)]
    assert [line.split(" in ")[0] for line in said][1] == "compiled the training step for captions of up to 4 tokens"


def test_methods_without_captions_keep_all_words():
    assert step_of((8, 4), "dino")[-1] == (12,)
    assert step_of(())[-1] == (12,)


class Counted:
    """Batches of a process with these longest captions, counted as the Pipeline counts them."""

    def __init__(self, words):
        self._batches, self.num_bad, self.num_truncated, self.closed = map(batch_with, words), 0, 0, False

    def __next__(self):
        self.num_bad, self.num_truncated = self.num_bad + 1, self.num_truncated + 2
        return next(self._batches)

    def close(self):
        self.closed = True


def test_batches_of_several_processes_have_one_length():
    """That of the longest caption anywhere; the counts do not run ahead with the batches."""
    words, inner = (7, 3, 8, 12, 5, 2, 2), Counted((7, 3, 8, 12, 5, 2, 2))
    with closing(pretraining.SameLength(inner, (4, 8, 12), make_mesh())) as batches:
        for number, expected in enumerate((8, 4, 8, 12, 8), 1):
            batch = next(batches)
            assert batch["text"].shape == (8, 1, expected)
            assert np.array_equal(batch["text"], batch_with(words[number - 1])["text"][..., :expected])
            assert (batches.num_bad, batches.num_truncated) == (number, 2 * number)
    assert inner.closed


def test_a_process_cuts_to_the_longest_caption_of_another():
    assert caption_lengths.trimmed(batch_with(3), (4, 8, 12), longest=7)["text"].shape == (8, 1, 8)
    assert caption_lengths.trimmed(batch_with(3), (4, 8, 12))["text"].shape == (8, 1, 4)


@pytest.mark.parametrize("style", [{"causal": False}, {"pooling": "last"}])
def test_text_encoders_in_which_padding_has_an_effect_keep_all_tokens(style):
    """SigLIP's: a batch that was cut would give other embeddings."""
    step, program, _, lengths = step_of((8, 4), **style)
    step({}, batch_with(3))
    assert lengths == (12,) and program.ran == [(8, 1, 12)]


@pytest.mark.parametrize("method", ["superclip", "clip"])
def test_a_term_that_reads_words_keeps_those_of_captions_without_end(method):
    """The text encoder reads only the first token of such a caption, which is all that CLIP needs."""
    assert step_of((8, 4), method)[-1] == (4, 8, 12)
    assert step_of((8, 4), method, keep_eot=False)[-1] == ((12,) if method == "superclip" else (4, 8, 12))


@pytest.mark.parametrize(("method", "sentences"), [("cosmos", 5), ("flair", 3)])
def test_captions_of_several_sentences_of_stickers_need_one_program(method, sentences):
    """The first length holds the longest sentences that a caption of a scene can have."""
    config, encode = run_config.load(f"stickers.py:method={method}"), functools.cache(Tokenizer().encode)
    first, *_ = lengths_within(config.data.text_buckets, config.model.context_length)
    scenes = Stickers("train", size=64, num_scenes=1000)
    for scene in (scenes[index] for index in range(300)):
        longest = sorted((len(encode(text)) - 2 for text in sentences_of([scene["long"]])), reverse=True)
        assert 2 + sum(longest[:sentences]) <= first
