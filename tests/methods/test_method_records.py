"""What sets one method apart from the others, against loops over the record of its forward pass."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from tiny import ENCLOSING, check_names, noise, noise_state, tiny_batch, tiny_config, tiny_experiment

from detailclip_jax import methods
from detailclip_jax.config import run_config
from detailclip_jax.data.caption_selection import captions_of, num_captions
from detailclip_jax.data.views import crops_from_config, draw_boxes
from detailclip_jax.methods import components, masking
from detailclip_jax.methods import method as forward
from detailclip_jax.training import experiment, mesh
from detailclip_jax.types import Keys, Tokens, View

KEYS = Keys(jax.random.key(0), jax.random.split(jax.random.key(1), 8))


@functools.cache
def forward_of(method):
    """Experiment, a state of noise and the record of its forward pass."""
    exp = tiny_experiment(method)
    state = noise_state(exp)
    return exp, state, record_of(exp, state, tiny_batch(0, exp.config))


def record_of(exp, state, batch):
    return exp.forward(state, exp.put(batch))


def term_of(exp, name, record, *more):
    """Loss and metrics of a term of a record."""
    return jax.jit(lambda record: exp.method.terms[name].run(record, context(record), *more))(record)


def log_softmax(x):
    x = np.asarray(x, np.float64)
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def probabilities(logits, temperature):
    return np.exp(log_softmax(np.asarray(logits, np.float64) / temperature))


def test_dino_compares_each_teacher_view_with_all_other_crops():
    exp, _, record = forward_of("dino")
    student, teacher = (np.asarray(record.heads[name][...]) for name in ("student_cls", "teacher_cls"))
    assert student.shape == (4, 8, 32) and teacher.shape == (2, 8, 32)  # two globals, two locals
    expected = [
        -(probabilities(teacher[w], 0.04) * log_softmax(student[v] / 0.1)).sum(-1).mean()
        for w in range(2)
        for v in range(4)
        if v != w
    ]
    assert len(expected) == 6
    # the recorded forward pass has drop path drawn from other keys than the step, so the loss is taken from the record
    loss, metrics = term_of(exp, "cls", record)
    np.testing.assert_allclose(loss, np.mean(expected), rtol=1e-4)
    assert metrics["teacher_view_kl"] > 0 and metrics["teacher_entropy"] > 0


def context(record):
    centers = {"cls": jnp.zeros(32), "patch": jnp.zeros(32)}
    return forward.Context(centers, {"cls": jnp.asarray(0.04), "patch": jnp.asarray(0.04)})


@pytest.mark.parametrize("method", ["ibot", pytest.param("attmask", marks=pytest.mark.slow)])
def test_patch_distillation_runs_over_hidden_patches_of_each_image(method):
    exp, state, record = forward_of(method)
    loss, _ = term_of(exp, "patch", record)
    student = head_logits(exp, state.params, record.tokens["masked"].patches)
    teacher = head_logits(exp, state.ema_params, record.targets["full"].patches)
    per_patch = divergence(student, teacher)
    hidden = np.asarray(record.hidden.mask)
    per_image = [per_patch[i][hidden[i]].mean() if hidden[i].any() else 0.0 for i in np.ndindex(2, 8)]
    np.testing.assert_allclose(loss, np.mean(per_image), rtol=1e-4)


@pytest.mark.check
@pytest.mark.parametrize("method", ["detailclip", pytest.param("ibot", marks=pytest.mark.slow)])
def test_patch_distillation_may_run_over_all_patches(method):
    """Of a pass that drops patches: the encoder's tokens of the kept ones, the decoded tokens of the removed ones."""
    config = tiny_config(method)
    config.losses.patch_over = "all"
    exp = experiment.build(config, mesh.make_mesh(jax.devices()[:1]))
    state = noise_state(exp)
    record = record_of(exp, state, tiny_batch(0, config))
    tokens = np.array(record.targets["full"].patches)
    if method == "ibot":
        tokens = np.asarray(record.tokens["masked"].patches)
    else:
        parts = record.hidden.kept, record.hidden.removed, record.tokens["visible"].patches, record.decoded
        kept, removed, visible, decoded = jax.device_get(parts)
        for index in np.ndindex(2, 8):
            tokens[index][kept[index]] = visible[index]
            tokens[index][removed[index]] = decoded[index]
    taught = head_logits(exp, state.ema_params, record.targets["full"].patches)
    per_patch = divergence(head_logits(exp, state.params, tokens), taught)
    loss, _ = term_of(exp, "patch", record)
    np.testing.assert_allclose(loss, per_patch.mean(), rtol=1e-4)


@pytest.mark.parametrize("over", ["removed", "all"])
@pytest.mark.parametrize("method", ["detailclip", "maskclip"])
def test_a_narrower_decoder_cannot_serve_a_patch_term(method, over):
    """One prototype head takes the teacher's tokens, of the encoder's width, and decoded ones."""
    config = tiny_config(method)
    config.losses.patch_over, config.model.decoder_width = over, 64
    with pytest.raises(ValueError) as raised:
        methods.build(config)
    check_names(raised.value, method, "model.decoder_width 64", "96", "losses.weights.patch")
    config.losses.weights.patch = 0.0
    assert "patch" not in methods.build(config).terms


def test_ibot_hides_what_the_pipeline_drew():
    exp, _, record = forward_of("ibot")
    drawn = tiny_batch(0, exp.config)["hidden"]["large"]
    np.testing.assert_array_equal(record.hidden.mask, np.moveaxis(drawn, 1, 0))


def test_a_replaced_patch_is_not_seen():
    exp, state, record = forward_of("ibot")
    batch = tiny_batch(0, exp.config)
    hidden = np.repeat(np.repeat(batch["hidden"]["large"].reshape(8, 2, 4, 4), 8, 2), 8, 3)
    changed = {**batch["image"], "large": np.where(hidden[..., None], 7, batch["image"]["large"]).astype(np.uint8)}
    again = record_of(exp, state, {**batch, "image": changed})
    np.testing.assert_array_equal(again.tokens["masked"].cls, record.tokens["masked"].cls)
    assert (np.asarray(again.targets["full"].cls) != np.asarray(record.targets["full"].cls)).any()


def attmask_masks(strategy, steps=60, side=14):
    config = ConfigDict({"strategy": strategy, "drawn_ratio": (0.1, 0.5), "probability": 0.5})
    mask = jax.jit(components.mask_highest(config, "full", side))
    attention = np.random.default_rng(0).random((2, 8, 3, side**2)).astype(np.float32)
    tokens = Tokens(jnp.zeros((2, 8, 4)), jnp.zeros((2, 8, side**2, 4)), jnp.asarray(attention))
    keys = [Keys(jax.random.key(s), jax.random.split(jax.random.key(100 + s), 8)) for s in range(steps)]
    return attention[:, :, -1], np.stack([mask({"full": tokens}, {}, {}, key).mask for key in keys])


def test_attmask_hides_the_highest_of_the_last_block_by_one_ratio_per_step():
    attention, hidden = attmask_masks("attention_high")
    counts = hidden.sum(-1)
    shares = []
    for step in range(len(hidden)):
        (count,) = set(counts[step].ravel()) - {0}
        shares.append(count / 196)
        for index in zip(*np.nonzero(counts[step])):
            assert set(np.flatnonzero(hidden[(step, *index)])) == set(np.argsort(-attention[index])[:count])
    assert abs((counts > 0).mean() - 0.5) < 0.06
    assert min(shares) > 0.09 and max(shares) <= 0.5 and np.std(shares) > 0.05


def test_attmask_hint_shows_some_of_the_top_again():
    attention, hidden = attmask_masks("attention_hint", steps=20)
    for index in np.argwhere(hidden.any(-1)):
        mask, values = hidden[tuple(index)], attention[tuple(index[1:])]
        shown = np.argsort(-values)[: mask.sum() + 9]
        assert 1 <= (~mask[np.argsort(-values)[:19]]).sum() <= 9  # int(.1 r' 196), r' in .1 ... .5
        assert set(np.flatnonzero(mask)) <= set(shown)


def enclosing_attention(record):
    return np.asarray(record.targets["enclosing"].attention).mean(-2)[0]


@pytest.mark.check
@pytest.mark.parametrize("method", [pytest.param("aclip", marks=pytest.mark.slow), "detailclip"])
def test_the_mask_is_read_at_the_student_s_box(method):
    """A student's crop in the upper left quarter keeps what the map says about that quarter."""
    config = tiny_config(method)
    config.views.teacher = "enclosing"
    config.views.crops.update(ENCLOSING)
    config.masking.granularity = "patch"
    exp = experiment.build(config, mesh.make_mesh(jax.devices()[:1]))
    batch = tiny_batch(0, config)
    batch["box"]["large"][:] = (0, 0, 24, 24)
    record = record_of(exp, noise_state(exp), batch)
    maps, hidden = enclosing_attention(record).reshape(8, 4, 4), np.asarray(record.hidden.mask)
    for image in range(8):
        pixels = np.stack([np.interp((np.arange(48) + 0.5) / 12 - 0.5, range(4), c) for c in maps[image].T], 1)
        pixels = np.stack([np.interp((np.arange(48) + 0.5) / 12 - 0.5, range(4), r) for r in pixels])
        centres = (np.arange(4) + 0.5) * 6 - 0.5  # 2.5, 8.5, ...: halfway between two pixels
        low = np.floor(centres).astype(int)
        rows = (pixels[low] + pixels[low + 1]) / 2
        read = (rows[:, low] + rows[:, low + 1]) / 2
        expected = set(np.argsort(read.ravel())[:8])
        assert set(np.flatnonzero(hidden[0, image])) == expected


@pytest.mark.parametrize("size", [24, 48])
def test_an_enclosing_crop_of_another_size_is_read_at_the_student_s_patches(size):
    """Attention that grows downwards over a 3 x 3 or 6 x 6 grid: of a crop of 4 x 4 patches two rows are hidden."""
    config = tiny_config("detailclip")
    config.views.teacher, config.masking.granularity = "enclosing", "patch"
    config.views.crops.enclosing = {**ENCLOSING["enclosing"], "size": size}
    batch, side = tiny_batch(0, config), size // 8

    @jax.jit
    def mask(boxes):
        attention = jnp.broadcast_to(jnp.repeat(jnp.arange(float(side)), side), (1, 8, 3, side**2))
        targets = {"enclosing": Tokens(jnp.zeros((1, 8, 4)), jnp.zeros((1, 8, side**2, 4)), attention)}
        views = {
            name: View(jnp.zeros((*box.shape[:2], 1, 1, 3)).swapaxes(0, 1), box.swapaxes(0, 1))
            for name, box in boxes.items()
        }
        return methods.build(config).mask(targets, views, batch, KEYS)

    hidden = mask(batch["box"])
    np.testing.assert_array_equal(hidden.mask, np.broadcast_to(np.arange(16) < 8, (2, 8, 16)))


def test_the_same_teacher_makes_no_further_pass():
    assert set(methods.build(tiny_config()).targets) == {"full"}


@pytest.mark.check
def test_aclip_s_byol_compares_both_views_with_one_target():
    exp, _, record = forward_of("aclip")
    online, target = (np.asarray(record.heads[name]) for name in ("predicted_byol", "target_byol"))
    assert online.shape == (2, 8, 64) and target.shape == (1, 8, 64)
    cosine = lambda a, b: a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    expected = np.mean([2 - 2 * cosine(online[v, i], target[0, i]) for v in range(2) for i in range(8)])
    loss, _ = term_of(exp, "byol", record)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


@pytest.mark.check
def test_maskclip_reads_the_caption_against_the_whole_view_and_teaches_hidden_patches():
    exp, state, record = forward_of("maskclip")
    assert record.tokens["full"].patches.shape[2] == 16 and record.tokens["visible"].patches.shape[2] == 4
    whole = projected(exp, state, record.tokens["full"].cls)
    np.testing.assert_allclose(record.heads["image_embedding"], whole, rtol=1e-4, atol=1e-5)
    assert record.heads["student_patches"].shape == (1, 8, 12, 32)


def test_mae_s_loss_is_that_of_its_record():
    exp, _, record = forward_of("mae")
    target = np.asarray(record.heads["target_pixels"], np.float64)
    error = np.square(np.asarray(record.heads["predicted_pixels"]) - target).mean()
    loss, _ = term_of(exp, "reconstruction", record)
    np.testing.assert_allclose(loss, error, rtol=1e-5)
    assert target.shape == (1, 8, 12, 192)
    assert set(exp.state_shapes.params["decoder"]["embed"]["bias"].shape) == {64}


def test_supervised_may_mix():
    config = tiny_config("supervised")
    config.views.mixup = 0.8
    exp = experiment.build(config, mesh.make_mesh(jax.devices()[:1]))
    shapes = exp.state_shapes
    _, (metrics, _, _) = jax.eval_shape(exp.combined_loss, shapes.params, shapes, tiny_batch(0, config))
    assert {"labels", "class_accuracy"} <= {*metrics}


def test_random_masks_need_no_teacher():
    method = methods.build(tiny_config("mae"))
    hidden = jax.jit(lambda: method.mask({}, {}, {}, KEYS))()
    assert hidden.mask.shape == (1, 8, 16) and (np.asarray(hidden.mask).sum(-1) == 12).all()
    assert isinstance(hidden, type(masking.drawn(hidden.mask, 1)))


def image_network(method, image_size, grid=14):
    """The image encoder of a method for a grid of `grid` patches a side, and its parameters."""
    config = tiny_config(method)
    config.model.image_size = 8 * grid
    config.views.crops.large.size = 8 * grid
    if method == "ibot":
        config.views.crops.large.mask_grid = grid
    network = methods.build_networks(config).image
    shapes = jax.eval_shape(network.init, jax.random.key(3), jnp.zeros((1, image_size, image_size, 3)))
    return network, noise(shapes["params"])


OTHERS = [pytest.param(name, marks=pytest.mark.slow) for name in ("ibot", "attmask", "clip", "slip")]


@pytest.mark.parametrize("method", ["dino", "detailclip", *OTHERS])
def test_local_crops_read_their_positions_as_the_published_code_of_the_row_does(method):
    """DINO's code, and iBOT's and AttMask's after it, scales by (6 + .1) / 14; PyTorch's own size=6 by 6 / 14."""
    torch = pytest.importorskip("torch")
    network, params = image_network(method, 48)
    grid = torch.from_numpy(np.array(params["positions"][1:])).reshape(1, 14, 14, -1).permute(0, 3, 1, 2)
    adds_a_tenth = method in ("dino", "ibot", "attmask")
    how = {"scale_factor": (6.1 / 14, 6.1 / 14)} if adds_a_tenth else {"size": (6, 6)}
    moved = torch.nn.functional.interpolate(grid, mode="bicubic", **how)[0].permute(1, 2, 0).reshape(36, -1)
    table = jnp.concatenate([params["positions"][:1], jnp.asarray(moved.numpy())])
    images = jax.random.normal(jax.random.key(0), (2, 48, 48, 3))
    ours = jax.jit(network.apply)({"params": params}, images)
    theirs = jax.jit(network.clone(image_size=48).apply)({"params": {**params, "positions": table}}, images)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("ratio", [0.5, 0.6, 0.75, 0.9])
def test_mae_rounds_the_patches_that_it_keeps_and_the_others_those_that_they_remove(ratio):
    """MAE's code: len_keep = int(L * (1 - mask_ratio))."""
    for method, kept in (("mae", int(196 * (1 - ratio))), ("maskclip", 196 - int(196 * ratio))):
        config = tiny_config(method)
        config.model.image_size, config.views.crops.large.size = 112, 112
        config.masking.ratio = ratio
        assert components.mask_rule(config).num_kept == kept
        if method == "mae":
            mask = methods.build(config).mask
            assert jax.eval_shape(lambda mask=mask: mask({}, {}, {}, KEYS).kept).shape[-1] == kept


def test_mae_s_warm_up_divides_by_its_steps_and_the_others_by_one_less():
    """MAE's code: lr * epoch / warmup_epochs."""
    for method, divisor in (("mae", 4), ("detailclip", 3), ("dino", 3)):
        config = tiny_config(method)
        config.optimizer.warmup_start, config.optimizer.warmup_steps = 0.0, 4
        rate = tiny_schedules(config).learning_rate
        expected = config.optimizer.learning_rate * np.arange(4) / divisor
        np.testing.assert_allclose([rate(t) for t in range(4)], expected, rtol=1e-6)
        np.testing.assert_allclose(rate(4), config.optimizer.learning_rate, rtol=1e-6)


def tiny_schedules(config):
    return experiment.build_schedules(config, methods.build(config))


def unit(x):
    x = np.asarray(x, np.float64)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def contrast(image, text, scale):
    """Symmetric cross-entropy of one stack of images and one of captions."""
    logits, own = scale * unit(image) @ unit(text).T, np.arange(len(image))
    return -(log_softmax(logits)[own, own].mean() + log_softmax(logits.T)[own, own].mean()) / 2


def scale_of(record):
    return float(np.exp(record.heads["logit_scale"]))


def head_logits(exp, params, tokens):
    logits = jax.jit(lambda params, x: exp.model.prototype_head.apply({"params": params}, x)[...])
    return np.asarray(logits(params["prototype_head"], jax.device_put(tokens)))


def projected(exp, state, cls):
    embed = jax.jit(exp.model.image_projection.apply)
    return np.asarray(embed({"params": state.params["image_projection"]}, jax.device_put(cls)))


def divergence(student, teacher):
    return -(probabilities(teacher, 0.04) * log_softmax(np.asarray(student) / 0.1)).sum(-1)


@pytest.mark.check
def test_silc_compares_the_whole_image_and_both_globals_with_the_caption():
    exp, state, record = forward_of("silc")
    clean, full, local = (np.asarray(record.tokens[name].cls) for name in ("clean", "full", "local"))
    embedded, (text,) = projected(exp, state, np.concatenate([clean, full])), np.asarray(record.text.embedding)
    expected = np.mean([contrast(x, text, scale_of(record)) for x in embedded])
    loss, _ = term_of(exp, "clip", record, forward.WholeBatch())
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    student = head_logits(exp, state.params, np.concatenate([full, local]))
    teacher = head_logits(exp, state.ema_params, record.targets["full"].cls)
    pairs = [divergence(student[v], teacher[w]) for w in range(2) for v in range(4) if v != w]
    np.testing.assert_allclose(term_of(exp, "cls", record)[0], np.mean(pairs), rtol=1e-4)


TIPS = ["tips", "tipsv2"]


@pytest.mark.check
@pytest.mark.parametrize("method", TIPS)
def test_tips_teaches_local_crops_and_patches_by_one_global_crop(method):
    exp, state, record = forward_of(method)
    taught = {**state.params, **state.ema_params}
    hidden = np.asarray(record.hidden.mask)
    assert hidden.shape == (1, 8, 16) and (hidden.sum(-1) == 12).all()
    (target,) = head_logits(exp, taught, record.targets["full"].cls)
    local = divergence(head_logits(exp, state.params, record.tokens["local"].cls), target)
    np.testing.assert_allclose(term_of(exp, "cls", record)[0], np.mean(local), rtol=1e-4)
    patches = head_logits(exp, state.params, record.tokens["masked"].patches)
    per_patch = divergence(patches, head_logits(exp, taught, record.targets["full"].patches))
    expected = per_patch.mean() if method == "tipsv2" else per_patch[hidden].mean()
    np.testing.assert_allclose(term_of(exp, "patch", record)[0], expected, rtol=1e-4)


@pytest.mark.check
def test_tipsv2_averages_its_head_alone_and_is_taught_by_its_own_encoder():
    exp, _, record = forward_of("tipsv2")
    assert set(exp.state_shapes.ema_params) == {"prototype_head"}
    np.testing.assert_allclose(record.targets["full"].cls, record.tokens["full"].cls, rtol=1e-5, atol=1e-6)


def two_captions(method="tips"):
    """The config of a method for two captions of an image, and an experiment of it."""
    config = tiny_config(method)
    config.data.caption, config.model.class_tokens = "sources:caption,synthetic", 2
    return config, experiment.build(config, mesh.make_mesh(jax.devices()[:1]))


@pytest.mark.check
def test_tips_compares_each_caption_with_its_own_class_token():
    config, exp = two_captions()
    state = noise_state(exp)
    record = record_of(exp, state, tiny_batch(0, config))
    tokens = record.tokens["full"]
    cls, texts = np.concatenate([tokens.cls, np.asarray(tokens.extra)[:, :, 0]]), np.asarray(record.text.embedding)
    assert cls.shape[0] == 2 and texts.shape == (2, 8, 64)
    expected = [contrast(x, text, scale_of(record)) for x, text in zip(projected(exp, state, cls), texts, strict=True)]
    loss, _ = term_of(exp, "clip", record, forward.WholeBatch())
    np.testing.assert_allclose(loss, np.mean(expected), rtol=1e-5)


@pytest.mark.slow
def test_two_captions_in_chunks_are_those_of_the_whole_batch():
    config, whole = two_captions()
    config.accumulation = 4
    chunked = experiment.build(config, whole.mesh)
    state, batch = noise_state(whole), whole.put(tiny_batch(0, config))
    found = [
        jax.jit(jax.value_and_grad(e.combined_loss, has_aux=True))(state.params, state, batch) for e in (whole, chunked)
    ]
    for a, b in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-5)


@pytest.mark.check
def test_siglip2_takes_the_image_as_it_is_for_its_sigmoid_loss():
    exp, state, record = forward_of("siglip2")
    (embedded,), (text,) = projected(exp, state, record.tokens["clean"].cls), np.asarray(record.text.embedding)
    z = scale_of(record) * unit(embedded) @ unit(text).T
    signs = 2 * np.eye(8) - 1
    expected = np.log1p(np.exp(-signs * (z + float(record.heads["logit_bias"])))).sum(-1).mean()
    loss, _ = term_of(exp, "sigmoid", record, forward.WholeBatch())
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    (target,) = head_logits(exp, state.ema_params, record.targets["full"].cls)
    local = divergence(head_logits(exp, state.params, record.tokens["local"].cls), target)
    np.testing.assert_allclose(term_of(exp, "cls", record)[0], np.mean(local), rtol=1e-4)


@pytest.mark.parametrize(("method", "second"), [("tips", {"generated"}), ("tipsv2", {"generated", "much longer"})])
def test_the_captions_of_tips_are_those_that_its_config_names(method, second):
    """The strings: the alt-text first, then the generated caption, of TIPSv2 one of two."""
    config = run_config.load(f"configs/beyond/{method}.py:captions=2")
    example = {"captions": ["alt"], "caption": "alt", "synthetic": "generated", "long": "much longer"}
    rng = np.random.default_rng(0)
    drawn = [captions_of(example, config.data.caption, rng) for _ in range(40)]
    assert {pair[0] for pair in drawn} == {"alt"} and {pair[1] for pair in drawn} == second
    assert config.model.class_tokens == num_captions(config.data) == 2


@pytest.mark.parametrize(
    ("config", "num"),
    [
        ("beyond/cosmos.py", 8),
        ("beyond/flair.py", 8),
        ("beyond/flair.py:data=yfcc15m", 10),
        ("stickers.py:method=cosmos", 6),
        ("stickers.py:method=flair", 4),
    ],
)
def test_the_captions_of_cosmos_and_flair_are_those_that_their_configs_name(config, num):
    """The strings: two captions of 1 to 5 sentences, then single ones; or all captions of 1 to 3 sentences."""
    data, rng = run_config.load(f"configs/{config}").data, np.random.default_rng(0)
    every = [f"Sentence {number}" for number in range(9)]
    example = {"captions": [". ".join(every)], "long": [". ".join(every)]}
    drawn = [captions_of(example, data.caption, rng, num_captions(data)) for _ in range(60)]
    split = [[caption.split(". ") for caption in captions] for captions in drawn]
    assert {len(captions) for captions in drawn} == {num}
    assert all(set(parts) <= set(every) and len(set(parts)) == len(parts) for parts in itertools.chain(*split))
    lengths = [{len(captions[place]) for captions in split} for place in range(num)]
    longest = [5, 5, *[1] * (num - 2)] if "cosmos" in config else [3] * num
    assert lengths == [set(range(1, most + 1)) for most in longest]


@pytest.mark.parametrize("method", ["silc", "siglip2"])
def test_the_clean_crop_is_the_whole_image_whatever_its_shape(method):
    crops = crops_from_config(run_config.load(f"configs/beyond/{method}.py").views.crops)
    for height, width in ((375, 500), (500, 30), (64, 64)):
        assert draw_boxes(height, width, crops, np.random.default_rng(0))["clean"] == [(0, 0, width, height)]
