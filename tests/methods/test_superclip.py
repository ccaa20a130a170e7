"""SuperCLIP: its loss against the printed sums, its counts in the training state, and its term in other methods."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import BATCH, noise_state, program_of, tiny_batch, tiny_config, tiny_experiment

from detailclip_jax.data.tokenizer import EOT, PAD, SOT, VOCAB_SIZE
from detailclip_jax.losses.token_set import document_counts, inverse_frequency, token_set_loss
from detailclip_jax.methods.running_statistics import SUM, add_counts
from detailclip_jax.methods.token_set import classes_of
from detailclip_jax.training import experiment, mesh

compiled_loss = jax.jit(token_set_loss, static_argnames="most_logits")
TOKENS = np.array([[0, 3, 3, 7], [7, 7, 7, 7], [-1, 2, 0, 99], [-1, -1, 12, 99], [1, 2, 3, 4]])  # of 9 classes


def arrays(num_views=2, width=5, classes=9, seed=0):
    rng = np.random.default_rng(seed)
    shapes = (num_views, len(TOKENS), width), (width, classes), (classes,)
    features, kernel, bias = (np.float32(rng.normal(size=shape)) for shape in shapes)
    return features, kernel, bias, TOKENS, np.float32(rng.random(classes))


def oracle(features, kernel, bias, tokens, weights):
    """A loop over views and images in float64."""
    features, kernel, bias, weights = (np.asarray(x, np.float64) for x in (features, kernel, bias, weights))
    total = 0.0
    for view in features:
        for x, row in zip(view, tokens, strict=True):
            z = x @ kernel + bias
            log_softmax = z - np.log(np.exp(z).sum())
            present = {int(token) for token in row if 0 <= token < len(weights)}
            mass = sum(weights[c] for c in present)
            total -= sum(weights[c] / mass * log_softmax[c] for c in present) if mass else 0.0
    return total / (len(features) * len(tokens))


@pytest.mark.parametrize("most", [0, 1, 20, 1000])
def test_the_loss_is_the_printed_sum_in_any_chunks(most):
    loss, accuracy = compiled_loss(*arrays(), most_logits=most)
    np.testing.assert_allclose(loss, oracle(*arrays()), rtol=1e-5)
    assert 0 <= accuracy <= 1


@pytest.mark.parametrize("most", [0, 20])
def test_gradients_are_those_of_torch(most):
    torch = pytest.importorskip("torch")
    features, kernel, bias, tokens, weights = arrays()
    given = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (features, kernel, bias)]
    y = np.array([[c in row for c in range(9)] for row in tokens]) * weights
    target = torch.tensor(y / np.maximum(y.sum(-1, keepdims=True), 1e-30))
    logits = given[0] @ given[1] + given[2]
    theirs = -(target * torch.log_softmax(logits, -1)).sum(-1).mean()
    theirs.backward()
    ours = jax.grad(lambda *x: compiled_loss(*x, tokens, weights, most_logits=most)[0], argnums=(0, 1, 2))
    for a, b in zip(ours(features, kernel, bias), given, strict=True):
        np.testing.assert_allclose(a, b.grad.numpy(), rtol=1e-4, atol=1e-6)


def test_an_image_without_words_and_one_of_words_that_all_images_have_have_no_loss_and_no_gradient():
    features, kernel, bias, _, weights = arrays()
    weights[3] = 0.0
    tokens = np.array([[-1, -1], [3, 3], [3, -1], [99, 3], [-1, 99]])
    value, gradient = jax.value_and_grad(lambda x: compiled_loss(x, kernel, bias, tokens, weights)[0])(features)
    assert value == 0 and not np.asarray(gradient).any()


def test_an_image_counts_once_for_a_token_however_often_it_has_it():
    expected = [*(sum(token in row for row in TOKENS) for token in range(9)), len(TOKENS)]
    np.testing.assert_array_equal(document_counts(jnp.asarray(TOKENS), 9), expected)


def test_weights_are_the_published_ones():
    """Published: N counts updates, f_c adds up the shares of captions with c, w = ln((N + 1/B) / (f_c + 1/B))."""
    size, updates = 16, 5
    shares = np.random.default_rng(0).integers(0, size + 1, (updates, 9)) / size
    published = np.log((updates + 1 / size) / (shares.sum(0) + 1 / size))
    counts = jnp.asarray([*np.round(shares.sum(0) * size), updates * size], jnp.uint32)
    np.testing.assert_allclose(inverse_frequency(counts), published, rtol=1e-5, atol=1e-6)


def test_counts_are_exact_beyond_the_whole_numbers_of_float32():
    """In float32 a token that all but 3 of 600 million images have would have a weight of 0, or one below it."""
    counts = SUM.update(jnp.array([599_999_900, 599_999_900], jnp.uint32), jnp.array([97, 100], jnp.uint32), 0.9)
    np.testing.assert_allclose(inverse_frequency(counts), np.log(600_000_001 / 599_999_998), rtol=1e-5)


def test_weights_stay_when_the_counts_are_full():
    """A run of 12.8 billion images, as CLIP's, sees more than 32 bits count."""
    counts, batch = jnp.array([3_000_000_000, 1000, 2**32 - 8], jnp.uint32), jnp.array([5, 1, 8], jnp.uint32)
    np.testing.assert_array_equal(add_counts(counts, batch), counts)
    np.testing.assert_allclose(inverse_frequency(counts), np.log(2**32 / np.array([3e9, 1001])), rtol=1e-5)


def counts_of(batches, vocab_size):
    """Images that have each id, and all images, in a loop."""
    counts = np.zeros(vocab_size + 1)
    counts[-1] = len(batches) * BATCH
    for batch in batches:
        for captions in batch["text"]:
            counts[[*{*captions.ravel().tolist()}]] += 1
    return counts


@functools.cache
def two_steps():
    """The experiment and its batches; state and record of the second step, and its state and metrics."""
    exp = tiny_experiment("superclip")
    batches = [tiny_batch(step, exp.config) for step in range(2)]
    state = noise_state(exp)
    state, _ = exp.train_step(state, exp.put(batches[0]))
    record = exp.forward(state, exp.put(batches[1]))
    before = jax.device_get(state)
    state, metrics = exp.train_step(state, exp.put(batches[1]))
    return exp, batches, (before, record), state, jax.device_get(metrics)


def test_the_state_counts_the_images_of_each_token_exactly():
    exp, batches, _, state, _ = two_steps()
    np.testing.assert_array_equal(state.running["token_set"], counts_of(batches, exp.config.model.vocab_size))


def test_the_weights_of_a_step_count_all_images_so_far_and_the_step_s_own():
    exp, batches, (_, record), _, metrics = two_steps()
    size = exp.config.model.vocab_size
    weights = np.log((2 * BATCH + 1) / (counts_of(batches, size)[:-1] + 1))
    weights[[0, size - 2, size - 1]] = 0.0  # padding, start and end
    heads = record.heads
    given = heads["set_features"], heads["set_kernel"], heads["set_bias"], batches[1]["text"].reshape(BATCH, -1)
    np.testing.assert_allclose(metrics["token_set"], oracle(*given, weights), rtol=1e-5)


def test_the_classifier_reads_the_normalised_mean_of_the_patches():
    _, _, (state, record), _, _ = two_steps()
    mean = np.asarray(record.tokens["full"].patches, np.float64).mean(-2)
    centred = mean - mean.mean(-1, keepdims=True)
    normalised = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    norm = state.params["token_head"]["norm"]
    expected = normalised * np.asarray(norm["scale"]) + np.asarray(norm["bias"])
    np.testing.assert_allclose(record.heads["set_features"], expected, rtol=1e-4, atol=1e-5)


def test_clip_s_special_ids_are_no_targets():
    classes = classes_of(np.arange(VOCAB_SIZE), VOCAB_SIZE)
    assert [*np.flatnonzero(classes < 0)] == sorted([PAD, SOT, EOT])


def test_chosen_ids_are_the_classes_of_the_head():
    config = tiny_config("superclip")
    config.losses.token_ids = (5, 9, 7)
    shapes = experiment.build(config, mesh.make_mesh(jax.devices()[:1])).state_shapes
    assert shapes.params["token_head"]["proj"]["kernel"].shape == (96, 3)
    assert shapes.running["token_set"].shape == (config.model.vocab_size + 1,)
    classes = classes_of(np.array([5, 9, 7]), 12)
    assert classes[[5, 9, 7]].tolist() == [0, 1, 2] and (classes >= 0).sum() == 3


@pytest.mark.check
def test_weight_0_is_clip_and_clip_with_the_weight_is_superclip():
    weight = "losses.weights.token_set"
    programs = {name: [program_of(name, {weight: w}) for w in (0.0, 1.0)] for name in ("clip", "superclip")}
    assert programs["clip"] == programs["superclip"] and programs["clip"][0] != programs["clip"][1]
