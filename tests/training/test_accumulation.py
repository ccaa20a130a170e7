"""A batch in chunks needs less memory, and what must know the whole batch; its numbers are in the methods' tests."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import noise_state, tiny_batch, tiny_config

from detailclip_jax import methods
from detailclip_jax.methods.method import Head, Loss, Method, Pass, full
from detailclip_jax.training import accumulation, experiment, mesh


def built(method, chunks, devices=1, size=None):
    config = tiny_config(method)
    config.accumulation, config.batch_size = chunks, size or config.batch_size
    return experiment.build(config, mesh.make_mesh(jax.devices()[:devices]))


@pytest.mark.slow
def test_memory_falls_with_the_chunks():
    """Temporaries of the compiled step at 64 images: by chunks of 8 less than a third."""
    found = {}
    for chunks in (1, 8):
        exp = built("clip", chunks, size=64)
        batch = exp.put(tiny_batch(config=exp.config, size=64))
        compiled = exp.train_step.lower(exp.state_shapes, batch).compile()
        found[chunks] = compiled.memory_analysis().temp_size_in_bytes
    assert found[8] < found[1] / 3


def test_split_and_rejoin_keep_every_row_in_its_place():
    rows = jnp.arange(24.0).reshape(2, 6, 2)  # V, B, D
    chunks = jnp.moveaxis(accumulation.split(jnp.moveaxis(rows, 1, 0), 3), 2, 1)  # 3 chunks of [V, 2, D]
    captions = jnp.arange(12.0).reshape(2, 6, 1)  # C, B, E
    text = jnp.moveaxis(captions.reshape(2, 3, 2, 1), 0, 1)
    classes = accumulation.ClassTokens(chunks, chunks[..., None, :] * jnp.ones((2, 1)))
    texts = {"text": accumulation.Captions(text), "target_text": None}
    line = accumulation.rejoin(
        {}, {"targets": {}, "anchors": {}, "tokens": {"full": classes}, **texts, "heads": {"own": chunks}}
    )
    np.testing.assert_array_equal(line.tokens["full"].cls, rows)
    np.testing.assert_array_equal(line.text.embedding, captions)
    np.testing.assert_array_equal(line.tokens["full"].extra, jnp.stack([rows, rows], 2))
    np.testing.assert_array_equal(line.heads["own"], rows)
    assert line.target_text is None
    for read in (
        lambda: line.tokens["full"].patches,
        lambda: line.text.tokens.shape,
        lambda: line.views["large"],
        lambda: line.decoded.shape,
    ):
        with pytest.raises(ValueError, match=r"only known chunk by chunk.*accumulation=1"):
            read()


def test_terms_of_the_whole_batch_are_those_that_compare_or_normalise():
    for method, names in {"detailclip": {"clip"}, "aclip": {"clip", "simclr", "byol"}, "mae": set()}.items():
        row = methods.build(tiny_config(method))
        by_image, by_batch = accumulation.divide(row, chunks=2)
        assert set(by_batch.terms) == names
        assert set(by_image.terms) == set(row.terms) - names
        assert accumulation.divide(row, chunks=1)[0].losses == row.losses


def test_a_term_over_the_patches_of_the_whole_batch_is_refused_when_it_is_built(monkeypatch):
    head = Head(("everything",), lambda student, teacher, record: {"everything": record.tokens["full"].patches})
    loss = Loss(
        "clip",
        ("everything",),
        lambda record, context, whole_batch: (record.heads["everything"].mean(), {}),
        over="batch",
    )
    made = Method("clip", passes={"full": Pass("large", full)}, heads=(head,), losses=(loss,))
    monkeypatch.setitem(methods.METHODS, "clip", lambda config: made)
    built("clip", 1, size=6)
    with pytest.raises(ValueError, match=r"whole batch reads 'patches'.*set --config\.accumulation=1"):
        built("clip", 2, size=6)


def test_a_head_of_each_image_runs_in_its_chunk_and_serves_the_terms_of_the_whole_batch(monkeypatch):
    """A term that compares the patches' means of all images, which only the chunks know."""

    def run(record, context, whole_batch):
        (means,) = record.heads["means"]
        return jnp.sin(means @ means.T).mean(), {}

    head = Head(("means",), lambda student, teacher, record: {"means": record.tokens["full"].patches.mean(-2)})
    loss = Loss("clip", ("means",), run, over="batch")
    made = Method("clip", passes={"full": Pass("large", full)}, heads=(head._replace(per_image=True),), losses=(loss,))
    monkeypatch.setitem(methods.METHODS, "clip", lambda config: made)
    exps = [built("clip", chunks, size=6) for chunks in (1, 3)]
    state, batch = noise_state(exps[0]), exps[0].put(tiny_batch(3, exps[0].config, size=6))
    step = lambda exp: jax.jit(jax.value_and_grad(exp.combined_loss, has_aux=True))(state.params, state, batch)
    for a, b in zip(*(jax.tree.leaves(step(exp)) for exp in exps), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-6)
