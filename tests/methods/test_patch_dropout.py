"""Patch dropout: which patches an image encoder sees, and runs that end without it."""

import dataclasses
import functools
import types
from contextlib import closing
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from test_region import naive_roi_align
from tiny import TWO_BLOCKS, copied, noise_state, on_one_device, program_of, tiny_batch, tiny_config
from toy import SMALLEST

from detailclip_jax import methods, pretraining
from detailclip_jax.config import run_config
from detailclip_jax.runtime.metric_files import read_lines
from detailclip_jax.runtime.progress import Clock
from detailclip_jax.training import experiment, mesh
from detailclip_jax.training import train as training
from detailclip_jax.training.checkpoint import Checkpoints
from detailclip_jax.training.compiled_steps import Programs
from detailclip_jax.training.session import Run
from detailclip_jax.types import Keys

SWITCH = 3  # steps with dropout, of 20


def detail_config():
    """CLIP with all terms that read patches."""
    config = tiny_config("clip")
    config.views.crops.local = {"count": 3, "size": 16}
    config.data.caption, config.data.num_captions = "crops", 3
    config.losses.weights.update(dict.fromkeys(("token_set", "beta", "region", "gram"), 1.0))
    config.losses.ramps.update(dict.fromkeys(("region", "gram"), (0.0, 0.0)))
    return config


def built(method="clip", devices=1, accumulation=1, share=0.5):
    """The experiment, built once however the arguments are written."""
    return _built(method, devices, accumulation, share)


@functools.cache
def _built(method, devices, accumulation, share):
    config = detail_config() if method == "detail" else tiny_config(method)
    fields = {"views.patch_dropout": share, "views.patch_dropout_until": SWITCH / 20, "accumulation": accumulation}
    config.update_from_flattened_dict(fields)
    return experiment.build(config, mesh.make_mesh(jax.devices()[:devices]))


def step_of(exp, num_done):
    """The step of a run that goes on after `num_done` steps."""
    console = types.SimpleNamespace(live=lambda text: None, say=lambda text: None)
    run = Run(exp.config, Path(), exp, None, console, pretraining.PRETRAINING)
    return Programs(run, Clock(), exp.state_shapes, num_done)


def trained(exp, state, first, last):
    """The state and the metrics after steps first .. last - 1 of a run that goes on after `first` steps."""
    step, found = step_of(exp, first), []
    for number in range(first, last):
        state, metrics = step(state, tiny_batch(number, exp.config))
        found.append(jax.device_get(metrics))
    return state, found


def stepped(exp, state, first, last):
    """`trained` by the experiment's own steps, which stay compiled."""
    found = []
    for number in range(first, last):
        state, metrics = exp.step_after(number)(state, exp.put(tiny_batch(number, exp.config)))
        found.append(jax.device_get(metrics))
    return state, found


@functools.cache
def history():
    """Metrics of a run across the switch with all terms that read patches, and its last state."""
    exp = built("detail")
    state, found = trained(exp, noise_state(exp), 0, 5)
    return found, jax.device_get(state)


@pytest.mark.parametrize(("share", "num_kept"), [(0.5, 8), (0.75, 4), (0.3, 11), (0.01, 15), (0.99, 1)])
def test_kept_patches_are_a_uniform_subset_without_repetition(share, num_kept):
    config = tiny_config("clip")
    config.views.patch_dropout = share
    keys = Keys(jax.random.key(0), jax.random.split(jax.random.key(1), 2000))
    hidden = jax.jit(lambda keys: methods.build(config).mask({}, {}, {}, keys))(keys)
    kept, mask = np.asarray(hidden.kept)[0], np.asarray(hidden.mask)[0]
    assert kept.shape == (2000, num_kept) and all(len({*row}) == num_kept for row in kept)
    assert np.array_equal(np.sort(kept), np.nonzero(~mask)[1].reshape(kept.shape))
    deviation = np.sqrt(num_kept / 16 * (1 - num_kept / 16) / 2000)
    assert np.abs((~mask).mean(0) - num_kept / 16).max() < 4.5 * deviation
    pairs = (~mask[:, :8] & ~mask[:, 8:]).mean(0)  # patches of an image are drawn without regard to each other
    assert np.abs(pairs - num_kept * (num_kept - 1) / (16 * 15)).max() < 0.06


def test_views_and_images_draw_their_own():
    config = tiny_config("clip")
    config.views.patch_dropout, config.views.crops.large.count = 0.5, 2
    keys = Keys(jax.random.key(0), jax.random.split(jax.random.key(1), 50))
    kept = np.asarray(methods.build(config).mask({}, {}, {}, keys).kept)
    assert kept.shape == (2, 50, 8) and len({*map(tuple, kept.reshape(100, 8))}) > 95


def test_positions_are_added_before_patches_are_dropped_and_the_class_token_stays():
    exp = built()
    state, batch = noise_state(exp), tiny_batch(0, exp.config)
    record = exp.forward(state, exp.put(batch))
    kept = np.asarray(record.hidden.kept)[0]

    def expected(params, images, kept):
        image = exp.model.bind({"params": params}).image
        x = image.embed(images)
        rows = jax.numpy.concatenate([jax.numpy.zeros_like(kept[:, :1]), 1 + kept], 1)
        x = jax.numpy.take_along_axis(x, rows[..., None], 1)
        for block in image.blocks:
            x, _ = block(x)
        return image.norm(x)

    tokens = jax.jit(expected)(state.params, record.views["large"].image[0], kept)
    np.testing.assert_allclose(record.tokens["full"].cls[0], tokens[:, 0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(record.tokens["full"].patches[0], tokens[:, 1:], rtol=1e-4, atol=1e-5)


@pytest.mark.check
def test_terms_of_patches_read_those_that_are_seen():
    config = detail_config()
    config.model.custom, config.views.patch_dropout = TWO_BLOCKS, 0.9
    exp = experiment.build(config, mesh.make_mesh(jax.devices()[:1]))
    state, batch = noise_state(exp), tiny_batch(0, exp.config)
    batch["box"]["large"][...] = 0, 0, 48, 48
    record = exp.forward(state, exp.put(batch))
    kept, hidden = np.asarray(record.hidden.kept)[0], np.asarray(record.hidden.mask)[0]

    def expected(params, images, kept, texts):
        net = exp.model.bind({"params": params})
        image = net.image
        *most, last = image.blocks
        x = image.embed(images, kept)
        for block in most:
            x, _ = block(x)
        values = net.image_projection(image.norm(last.values(x))[:, 1:])
        return values, net.beta_pool(texts, values)

    texts = np.moveaxis(np.asarray(record.text.embedding), 0, 1)
    values, pooled = jax.jit(expected)(state.params, record.views["large"].image[0], kept, texts)
    np.testing.assert_allclose(np.moveaxis(record.heads["caption_pooled"], 0, 1), pooled, rtol=1e-4, atol=1e-5)

    anchor = np.asarray(record.anchors["full"].patches)[0]
    assert anchor.shape[1] == 16 and record.heads["gram_student"].shape[2] == 1
    np.testing.assert_array_equal(record.heads["gram_anchor"][0], np.take_along_axis(anchor, kept[..., None], 1))

    unit, counted, unseen = lambda x: x / np.linalg.norm(x), 0, 0
    for image, crop in np.ndindex(8, 3):
        maps = np.zeros((16, values.shape[-1]))
        maps[kept[image]] = [unit(value) for value in np.float64(values[image])]
        box = batch["box"]["local"][image, crop] / 48
        share = naive_roi_align(~hidden[image].reshape(4, 4, 1), box)[0]
        counts = share > 0 and (box[2:] - box[:2]).min() * 4 >= 1.5
        assert record.heads["region_counts"][crop, image] == counts
        found = np.asarray(record.heads["region_pooled"][crop, image])
        if counts:
            mean = naive_roi_align(maps.reshape(4, 4, -1), box) / share  # over what is visible
            np.testing.assert_allclose(unit(found), unit(mean), rtol=1e-3, atol=1e-4)
        counted, unseen = counted + counts, unseen + (share == 0)
    assert counted and unseen


@pytest.mark.check
def test_share_0_and_the_end_of_a_run_are_the_method_without_it():
    plain = program_of("clip", {})
    assert plain == program_of("clip", {"views.patch_dropout_until": 0.5})
    exp = built("clip")
    shapes = jax.eval_shape(lambda: experiment.dummy_batch(exp.config, exp.config.batch_size))
    assert exp.unmasked_step.lower(exp.state_shapes, shapes).as_text() == plain
    assert exp.train_step.lower(exp.state_shapes, shapes).as_text() != plain


@pytest.mark.check
def test_a_run_changes_its_step_after_the_stated_one():
    """Both steps take the same schedules, and the state goes on."""
    exp, (found, end) = built("detail"), history()
    steps = [exp.train_step] * SWITCH + [exp.unmasked_step] * 2
    assert all(step is exp.step_after(number) for number, step in enumerate(steps))
    state, metrics = stepped(exp, noise_state(exp), 0, 5)
    assert metrics == found
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), end)


@pytest.mark.check
@pytest.mark.parametrize("stop", [SWITCH - 1, SWITCH])
def test_a_run_that_was_stopped_around_the_switch_gives_the_same_bits(stop, tmp_path):
    exp, (found, end) = built("detail"), history()
    state, _ = stepped(exp, noise_state(exp), 0, stop)
    with closing(Checkpoints(tmp_path)) as checkpoints:
        checkpoints.save(stop, state, {"examples": 8 * stop}, {"config": "{}"})
        restored = checkpoints.restore(exp.state_shapes).state
    state, rest = trained(exp, copied(restored), stop, 5)
    assert rest == found[stop:]
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), end)


@pytest.mark.parametrize(("until", "first"), [(0.5, 10), (0.99, 19), (1.0, 20)])
def test_a_short_run_ends_with_all_patches_too(until, first):
    config = ConfigDict(built().config.to_dict())
    config.views.patch_dropout_until = until
    assert dataclasses.replace(built(), config=config).unmasked_from == first


@pytest.mark.parametrize(("until", "expected"), [(0.15, 0.0), (1.0, 0.5)])
def test_the_memory_of_a_run_is_that_of_its_end(until, expected):
    config = ConfigDict(built().config.to_dict())
    config.views.patch_dropout_until = until
    run = Run(config, Path(), built(), None, None, pretraining.PRETRAINING)
    assert run.task.share(run)[0].config.views.patch_dropout == expected


@pytest.mark.slow
def test_devices_and_chunks_give_the_same_numbers():
    """The patches of an image are drawn by its own key: neither device nor chunk matters."""
    exp = built("detail", devices=2, accumulation=2)
    _, made = stepped(exp, noise_state(exp), 0, SWITCH + 1)
    for one, many in zip(history()[0][: SWITCH + 1], made, strict=True):
        for name in one:
            np.testing.assert_allclose(many[name], one[name], rtol=2e-5, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("method", ["siglip", "superclip", "supervised", "flair"])
def test_other_methods_of_one_pass_encode_the_kept_patches(method):
    exp = built(method)
    patches_of = lambda state, batch: [tokens.patches for tokens in exp.forward(state, batch).tokens.values()]
    (patches,) = jax.eval_shape(patches_of, exp.state_shapes, tiny_batch(0, exp.config))
    assert patches.shape[:3] == (1, 8, 8)


@pytest.mark.slow
def test_a_method_that_pools_patches_by_captions_trains_with_it():
    exp = built("flair")
    state, found = noise_state(exp), []
    for _ in range(5):
        state, metrics = exp.train_step(state, exp.put(tiny_batch(0, exp.config)))
        found.append(float(metrics["loss"]))
    assert np.isfinite(found).all() and found[-1] < found[0]


@pytest.mark.slow
def test_one_command_trains_with_and_without_dropout(tmp_path):
    config = run_config.load(str(SMALLEST))
    fields = {"method": "clip", "total_steps": 4, "log_every": 1, "evaluate_at_end": False, "views.patch_dropout": 0.5}
    config.update_from_flattened_dict({**fields, "views.patch_dropout_until": 0.5, "data.text_buckets": ()})
    with on_one_device():
        run = pretraining.prepare(config, tmp_path / "run", ["method"])
        assert training.train(run) == 0
    lines = read_lines(tmp_path / "run/metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3, 4] and all(np.isfinite(line["loss"]) for line in lines)
