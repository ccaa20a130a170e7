"""COSMOS and FLAIR against loops over the record of their forward pass, written from the equations of their papers."""

import functools
import itertools

import jax
import numpy as np
import pytest
from tiny import noise_state, tiny_batch, tiny_config, tiny_experiment

from detailclip_jax import methods
from detailclip_jax.methods.method import Context, WholeBatch

CONTEXT = Context({}, {})


@functools.cache
def forward_of(method):
    """Experiment, a state of noise, a batch whose captions end in different places, and the record."""
    exp = tiny_experiment(method)
    state, batch = noise_state(exp), tiny_batch(0, exp.config)
    batch["text"][::2, :, 7] = exp.config.model.vocab_size - 1  # the first largest id ends a caption
    return exp, state, batch, exp.forward(state, exp.put(batch))


def unit(x):
    x = np.asarray(x, np.float64)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def info_nce(a, b, scale):
    """N(a, b, s): both directions, mean over all pairs of a view of a [V, B, E] and a view of b [W, B, E]."""
    found = []
    for one, other in itertools.product(unit(a), unit(b)):
        logits = scale * one @ other.T
        found += [np.mean(np.log(np.exp(z).sum(1)) - np.diag(z)) for z in (logits, logits.T)]
    return np.mean(found)


def value(exp, term, record):
    return jax.jit(lambda record: exp.method.terms[term].run(record, CONTEXT, WholeBatch()))(record)


def computed(exp, params, function, *given):
    """function(networks, *given) as one program."""
    return jax.jit(lambda params, *given: function(exp.model.bind({"params": params}), *given))(params, *given)


def test_cosmos_compares_every_crop_and_text_with_the_teacher_s():
    exp, _, _, record = forward_of("cosmos")
    heads = record.heads
    scale, distill_scale = (np.exp(float(heads[name])) for name in ("logit_scale", "distill_scale"))
    assert heads["image_embedding"].shape[0] == 2 and record.text.embedding.shape[0] == 4  # no local crop
    assert heads["image_cross"].shape[0] == 4 and heads["text_cross"].shape[0] == 4
    assert heads["teacher_image"].shape[0] == 2 and heads["teacher_text"].shape[0] == 2
    plain, _ = value(exp, "clip", record)
    np.testing.assert_allclose(plain, info_nce(heads["image_embedding"], record.text.embedding, scale), rtol=1e-5)
    pairs = itertools.product(("image_cross", "text_cross"), ("teacher_image", "teacher_text"))
    expected = np.mean([info_nce(heads[x], heads[y], distill_scale) for x, y in pairs])
    cross, metrics = value(exp, "cross", record)
    np.testing.assert_allclose(cross, expected, rtol=1e-5)
    assert 0 <= metrics["cross_accuracy"] <= 1


def test_cosmos_adds_a_pool_over_the_other_modality_s_first_global_view():
    exp, state, _, record = forward_of("cosmos")

    def expected(student, record):
        crops = [student.image_projection(cls) for name in ("full", "local") for cls in record.tokens[name].cls]
        words, valid = student.word_projection(record.text.tokens[0]), record.text.valid[0]
        patches = student.patch_projection(record.tokens["full"].patches[0])
        by_words = [e + student.image_pool(e[:, None], words, valid)[:, 0] for e in crops]
        return by_words, [e + student.text_pool(e[:, None], patches)[:, 0] for e in record.text.embedding]

    by_words, by_patches = computed(exp, state.params, expected, record)
    np.testing.assert_allclose(record.heads["image_cross"], by_words, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(record.heads["text_cross"], by_patches, rtol=1e-4, atol=1e-5)


def test_cosmos_without_pools_compares_the_embeddings_and_owns_no_pool():
    exp, state, _, record = forward_of("cosmos")
    config = tiny_config("cosmos")
    config.model.cross_pools = False
    method = methods.build(config)
    left_out = {"word_projection", "patch_projection", "image_pool", "text_pool"}
    assert set(method.networks) == set(exp.method.networks) - left_out
    (head,) = (head for head in method.heads if "image_cross" in head.makes)

    def both(student, record):
        crops = [student.image_projection(cls) for name in ("full", "local") for cls in record.tokens[name].cls]
        return head.run(student, student, record), crops

    found, crops = computed(exp, state.params, both, record)
    np.testing.assert_allclose(found["image_cross"], crops, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found["text_cross"], record.text.embedding)


def test_cosmos_s_teacher_encodes_global_crops_and_global_captions_without_pools():
    exp, state, batch, record = forward_of("cosmos")

    def expected(teacher, text, cls):
        texts = teacher.embed_text(text.reshape(-1, text.shape[-1])).reshape(*text.shape[:2], -1)
        return texts.swapaxes(0, 1), teacher.image_projection(cls)

    given = batch["text"][:, :2], record.targets["full"].cls
    texts, images = computed(exp, {**state.params, **state.ema_params}, expected, *given)
    np.testing.assert_allclose(record.heads["teacher_text"], texts, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(record.heads["teacher_image"], images, rtol=1e-4, atol=1e-5)
    assert set(state.ema_params) == {"image", "image_projection", "text", "text_projection"}


def test_captions_cut_behind_their_end_give_the_features_of_whole_ones():
    """What `data.text_buckets` does to a batch: COSMOS's crops attend to all words, but to none after the end."""
    exp, state, batch, _ = forward_of("cosmos")
    text = batch["text"].copy()
    text[..., 6] = exp.config.model.vocab_size - 1  # every caption has 7 tokens
    whole, cut = (exp.forward(state, exp.put({**batch, "text": tokens})) for tokens in (text, text[..., :8]))
    assert cut.text.tokens.shape[-2] == 8 and whole.text.tokens.shape[-2] == 12
    for name in ("image_cross", "text_cross", "teacher_text"):
        np.testing.assert_allclose(cut.heads[name], whole.heads[name], rtol=1e-5, atol=1e-6)


@pytest.mark.check
def test_flair_pools_every_image_by_its_own_captions_and_by_one_of_each_other_image():
    exp, state, _, record = forward_of("flair")
    heads, texts, tokens = record.heads, np.asarray(record.text.embedding), record.tokens["full"]
    num_captions, size, width = texts.shape
    flat = np.broadcast_to(texts.reshape(-1, width), (size, num_captions * size, width))

    def projected(net, tokens, flat):
        return net.caption_pool(flat, net.image_projection(tokens.patches[0])), net.image_projection(tokens.cls[0])

    pooled, images = map(np.asarray, computed(exp, state.params, projected, tokens, flat))
    pooled = pooled.reshape(size, num_captions, size, -1)  # image, caption, its image
    scale, bias = np.exp(float(heads["logit_scale"])), float(heads["logit_bias"])

    def term(feature, text, positive):
        z = scale * unit(feature) @ unit(text) + bias
        return np.log1p(np.exp(-z if positive else z))

    conditioned = multi = 0.0
    for i, j, k in itertools.product(range(size), range(size), range(num_captions)):
        multi += term(images[i], texts[k, j], i == j)
        if i == j or k == 0:
            conditioned += term(pooled[i, k, j], texts[k, j], i == j)
    conditioned, multi = conditioned / (size + num_captions - 1), multi / (size * num_captions)
    loss, metrics = value(exp, "flair", record)
    np.testing.assert_allclose(metrics["text_conditioned"], conditioned, rtol=1e-4)
    np.testing.assert_allclose(metrics["multi_positive"], multi, rtol=1e-4)
    np.testing.assert_allclose(loss, (conditioned + multi) / 2, rtol=1e-4)
