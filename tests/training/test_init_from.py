"""Training on from a checkpoint: what is loaded, what is fresh, and at which rates it moves."""

import functools
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from launching import QUICK
from ml_collections import ConfigDict
from tiny import check_names

from detailclip_jax import config, interop, pretraining
from detailclip_jax.config import run_config
from detailclip_jax.config.sizes import SIZES, size_of
from detailclip_jax.interop import tensor_files
from detailclip_jax.interop.timm_names import OPENAI_STYLE
from detailclip_jax.methods import METHODS
from detailclip_jax.models.positions import stretched_text
from detailclip_jax.pretraining import validate
from detailclip_jax.runtime.metric_files import read_lines
from detailclip_jax.training import (
    adopted_config,
    checkpoint,
    experiment,
    failures,
    mesh,
    optimizer,
    warm_start,
    workdirs,
)
from detailclip_jax.training import train as training

ROOT = pathlib.Path(__file__).parents[2]
SMALL = {
    "batch_size": 8,
    "total_steps": 4,
    "steps_per_epoch": 2,
    "evaluate_at_end": False,
    "data.source": "stickers",
    "model.size": "tiny",
    "model.image_size": 32,
    "model.context_length": 16,
    "model.prototypes": 16,
}


def tiny(method, crops=None, **fields):
    made = config.default()
    made.method = method
    made.views.crops.update(crops or {})
    made.update_from_flattened_dict(SMALL | fields)
    for crop in made.views.crops.values():
        crop.size = made.model.image_size
    return made


@functools.cache
def build(method):
    return experiment.build(tiny(method), mesh.make_mesh(jax.devices()[:1]))


def blank(asked):
    """A state of zeros in place of a fresh one, which would have to be compiled."""
    return jax.device_put(jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), experiment.weight_shapes(asked)))


def written(path, method="clip", **fields):
    """A workdir with one checkpoint of noise."""
    folder, trees = saved(run_config.to_json(tiny(method, **fields)))
    shutil.copytree(folder.name, path)
    return trees


@functools.cache
def saved(config_text):
    """What the tests of a config copy."""
    made, folder = run_config.from_json(config_text), tempfile.TemporaryDirectory()
    shapes = experiment.weight_shapes(made)
    rng = np.random.default_rng(0)
    trees = {
        name: jax.tree.map(
            lambda leaf: jax.device_put(np.float32(rng.standard_normal(leaf.shape))), getattr(shapes, name)
        )
        for name in ("params", "ema_params", "batch_stats", "running")
    }
    checkpoint.save_weights(folder.name, trees, made, "noise")
    return folder, trees


OPENAI = {f"model.image_style.{name}": value for name, value in OPENAI_STYLE._asdict().items()}


def test_what_the_checkpoint_decides(tmp_path):
    written(tmp_path / "clip", **OPENAI, **{"preprocess.mean": (0.1, 0.2, 0.3)})
    asked = tiny("detailclip", init=str(tmp_path / "clip"))
    asked.model.size, asked.model.image_size, asked.views.crops.large.size = "B/16", 224, 224
    asked.optimizer.loaded_rate = 0.25
    adopted = adopted_config.adopt(asked)
    validate(adopted)
    assert (adopted.model.size, adopted.model.image_size, adopted.views.crops.large.size) == ("tiny", 32, 32)
    assert adopted.model.image_style.to_dict() == OPENAI_STYLE._asdict()
    assert adopted.preprocess.mean == (0.1, 0.2, 0.3)
    parts = ("image", "image_projection", "text", "text_projection", "logit_scale")
    assert adopted.optimizer.part_rates.to_dict() == dict.fromkeys(parts, 0.25)
    assert run_config.to_json(adopted_config.adopt(adopted)) == run_config.to_json(adopted)
    assert asked.model.size == "B/16"


def test_sizes_of_crops_that_the_user_sets_are_not_scaled(tmp_path):
    run_config.claim_workdir(tmp_path / "clip", tiny("clip"))
    (tmp_path / "clip/checkpoints/4").mkdir(parents=True)
    asked = run_config.load(f"{ROOT}/configs/baselines/ibot.py")
    asked.init, asked.views.crops.local.size = str(tmp_path / "clip"), 24
    scaled, kept = (adopted_config.adopt(asked, given).views.crops for given in ([], ["views.crops.local.size"]))
    assert (scaled.large.size, scaled.local.size, scaled.large.mask_grid) == (32, 8, 4)
    assert (kept.large.size, kept.local.size, kept.large.mask_grid) == (32, 24, 4)
    asked.views.crops.large.size = 32  # that of the loaded model, not of the config
    same = adopted_config.adopt(asked, ["views.crops.large.size"]).views.crops.large
    assert (same.size, same.mask_grid) == (32, 4)
    other = run_config.load(f"{ROOT}/configs/baselines/dino.py")
    other.init, other.views.crops.large.size = str(tmp_path / "clip"), 224
    with pytest.raises(ValueError, match=r"views\.crops\.large\.size 224 must equal model\.image_size 32"):
        validate(adopted_config.adopt(other, ["views.crops.large.size"]))


def test_preprocessing_that_the_user_sets_wins_and_is_printed(tmp_path):
    theirs = {"preprocess.filter": "bicubic", "preprocess.resize": "squash", "preprocess.mean": (0.1, 0.2, 0.3)}
    written(tmp_path / "clip", **OPENAI, **theirs)
    asked = tiny("clip", init=str(tmp_path / "clip"), **{"preprocess.filter": "bilinear"})  # the default, but set
    assert adopted_config.adopt(asked).preprocess.filter == "bicubic"
    adopted = adopted_config.adopt(asked, ["seed", "preprocess.filter"])
    assert (adopted.preprocess.filter, adopted.preprocess.resize) == ("bilinear", "squash")
    assert adopted.preprocess.mean == (0.1, 0.2, 0.3)
    again = adopted_config.adopt(adopted, ["preprocess.filter"])
    assert run_config.to_json(again) == run_config.to_json(adopted)
    source = run_config.read(tmp_path / "clip" / "config.json")
    said = warm_start.report(adopted, source, [], [], {})
    assert "    set by you: filter bilinear (checkpoint: bicubic)" in said
    assert not any("set by you" in line for line in warm_start.report(adopted_config.adopt(asked), source, [], [], {}))


@pytest.mark.parametrize(
    ("named", "given", "expected"),
    [("bicubic", [], "timm"), ("bicubic", ["model.interpolation"], "bicubic"), ("ibot", [], "ibot")],
)
def test_positions_are_interpolated_as_in_the_checkpoint_unless_another_way_is_named(tmp_path, named, given, expected):
    written(tmp_path / "clip", **{"model.interpolation": "timm"})
    asked = tiny("clip", init=str(tmp_path / "clip"), **{"model.interpolation": named})
    assert adopted_config.adopt(asked, given).model.interpolation == expected


@pytest.mark.parametrize(
    ("field", "value", "theirs"), [("image_size", 64, "32"), ("image_style.norm_eps", 0.1, "1e-06")]
)
def test_a_flag_that_contradicts_a_loaded_network_is_refused(tmp_path, field, value, theirs):
    written(tmp_path / "clip")
    asked, given = tiny("clip", init=str(tmp_path / "clip")), [f"model.{field}", "model.context_length"]
    assert adopted_config.adopt(asked, given).model.context_length == 16  # as in the checkpoint
    asked.update_from_flattened_dict({f"model.{field}": value})
    with pytest.raises(ValueError) as refused:
        adopted_config.adopt(asked, given)
    check_names(refused.value, f"model.{field} {value}", str(tmp_path / "clip"), f"model.{field} {theirs}", "leave")


@pytest.mark.check
def test_flags_of_the_command_name_what_the_user_sets(tmp_path):
    flags = [f"--config={ROOT}/configs/stickers.py", "--config.preprocess.filter=bilinear", "--config.seed", "3"]
    script = "from detailclip_jax import main as m; import sys; m.parse_flags(sys.argv); print(m.from_flags()['given'])"
    done = subprocess.run([sys.executable, "-c", script, *flags], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.strip() == "['preprocess.filter', 'seed']", done.stderr


def test_without_init_nothing_changes():
    asked = tiny("detailclip")
    assert adopted_config.adopt(asked) is asked


def named(text, label, end=""):
    """The networks that a report names on the line `label`."""
    (line,) = re.findall(rf"^ *{label} +(.*){end}$", text, re.M)
    return set(line.split(", "))


def test_loaded_fresh_and_copied(tmp_path):
    trees = written(tmp_path / "clip")
    adopted = adopted_config.adopt(tiny("detailclip", init=str(tmp_path / "clip")))
    fresh = blank(adopted)
    state, lines = warm_start.load(adopted, fresh)
    for part in trees["params"]:
        jax.tree.map(np.testing.assert_array_equal, state.params[part], trees["params"][part])
    for part in ("decoder", "pixel_head", "prototype_head"):
        jax.tree.map(np.testing.assert_array_equal, state.params[part], fresh.params[part])
    for part, value in state.ema_params.items():
        jax.tree.map(np.testing.assert_array_equal, value, state.params[part])
    said = "\n".join(lines)
    joint = {"image", "image_projection", "text", "text_projection"}
    assert named(said, "teacher", ": a copy of the student") == joint | {"prototype_head"}
    assert named(said, "loaded") == joint | {"logit_scale"}
    assert named(said, "fresh") == {"decoder", "pixel_head", "prototype_head"}
    assert "preprocess    shorter side to 32 px (bilinear), center crop 32 px" in said
    assert "image tower   norm_eps 1e-06, activation gelu" in said and "centers       fresh" in said
    pointers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves((state.params, state.ema_params))]
    assert len(set(pointers)) == len(pointers)  # a step donates them all


@pytest.mark.check
def test_a_locked_network_is_loaded_and_its_rate_is_not_said(tmp_path):
    """The teacher has no copy of it; `loaded_rate` is that of the other networks."""
    trees = written(tmp_path / "clip")
    fields = {"optimizer.frozen": "image,image_projection", "optimizer.loaded_rate": 0.5}
    adopted = adopted_config.adopt(tiny("detailclip", init=str(tmp_path / "clip"), **fields))
    state, lines = warm_start.load(adopted, blank(adopted))
    jax.tree.map(np.testing.assert_array_equal, state.params["image"], trees["params"]["image"])
    assert named("\n".join(lines), "teacher", ": a copy of the student") == {
        "text",
        "text_projection",
        "prototype_head",
    }
    [rates] = [line for line in lines if line.startswith("  learning rate")]
    assert "image frozen" in rates and "image_projection frozen" in rates and "text x 0.5" in rates


@pytest.mark.check
def test_a_teacher_that_comes_along_is_kept(tmp_path):
    trees = written(tmp_path / "run", "detailclip")
    adopted = adopted_config.adopt(tiny("detailclip", init=str(tmp_path / "run"), **{"model.prototypes": 8}))
    assert adopted.model.prototypes == 16
    state, lines = warm_start.load(adopted, blank(adopted))
    jax.tree.map(np.testing.assert_array_equal, state.ema_params["image"], trees["ema_params"]["image"])
    said = "\n".join(lines)
    teacher = {"image", "image_projection", "text", "text_projection", "prototype_head"}
    assert named(said, "teacher", ": loaded") == teacher
    assert "fresh         nothing" in said and "a copy" not in said and "not used" not in said
    assert set(state.running) == {"cls", "patch"} and "centers       cls, patch" in said
    jax.tree.map(np.testing.assert_array_equal, dict(state.running), trees["running"])


def test_networks_of_the_checkpoint_that_are_not_used_are_named(tmp_path):
    written(tmp_path / "run", "detailclip")
    adopted = adopted_config.adopt(tiny("clip", init=str(tmp_path / "run")))
    said = "\n".join(warm_start.load(adopted, blank(adopted))[1])
    heads = {"decoder", "pixel_head", "prototype_head"}
    teacher = {"image", "image_projection", "text", "text_projection", "prototype_head"}
    assert named(said, "not used") == heads | {f"teacher's {network}" for network in teacher}


CONTINUE = pathlib.Path(__file__).parents[2] / "configs/vitb16_continue.py"


FIRST = ("aclip", "dino")  # a crop that encloses, smaller crops
LATER = [pytest.param(name, marks=pytest.mark.slow) for name in METHODS if name not in (*FIRST, "image_encoder")]


@pytest.mark.check
@pytest.mark.parametrize("method", [*FIRST, *LATER])  # nothing trains an image encoder alone
def test_any_row_goes_on_from_a_clip(tmp_path, method):
    """With its own crops and masks, fitted to the images that the checkpoint has seen."""
    written(tmp_path / "clip")
    asked = run_config.load(f"{CONTINUE}:method={method}")
    asked.init, asked.total_steps, asked.steps_per_epoch = str(tmp_path / "clip"), 4, 2
    if method == "aclip":
        asked.masking.ratio = 0.5  # a quarter of these four cells is none
    if method == "beta":
        asked.model.context_length = 16  # its rule stretches 77 positions, and leaves these
    adopted = adopted_config.adopt(asked)
    validate(adopted)
    shapes = experiment.build(adopted, mesh.make_mesh(jax.devices()[:1])).state_shapes
    assert set(shapes.params) >= {"image"} and adopted.optimizer.part_rates["image"] == 0.1
    assert adopted.views.crops.large.size == 32
    if method in ("dino", "ibot"):
        assert adopted.views.crops.local.size == 16  # 96 of 224 pixels are 14 of 32
    if method == "ibot":
        assert adopted.views.crops.large.mask_grid == 4


@pytest.mark.parametrize(
    ("method", "head", "field", "theirs", "ours"),
    [
        ("supervised", "class_head", "model.num_classes", 5, 3),
        ("superclip", "token_head", "losses.token_ids", (4, 5), (5, 6)),
    ],
)
def test_a_classifier_of_other_classes_is_fresh(tmp_path, method, head, field, theirs, ours):
    more = {"losses.weights.token_set": 1.0} if method == "superclip" else {}
    written(tmp_path / "first", method, **{field: theirs}, **more)
    for value, is_loaded in ((theirs, True), (ours, False)):
        asked = adopted_config.adopt(tiny(method, init=str(tmp_path / "first"), **{field: value}, **more))
        assert (head in asked.optimizer.part_rates) == is_loaded
        state, lines = warm_start.load(asked, blank(asked))
        assert named("\n".join(lines), "fresh") == {"nothing" if is_loaded else head}
        assert any(np.asarray(leaf).any() for leaf in jax.tree.leaves(state.params[head])) == is_loaded


def test_an_image_encoder_alone(tmp_path):
    trees = written(tmp_path / "mae", "image_encoder")
    adopted = adopted_config.adopt(tiny("clip", init=str(tmp_path / "mae"), **{"model.context_length": 20}))
    assert adopted.model.context_length == 20 and set(adopted.optimizer.part_rates) == {"image"}
    state, lines = warm_start.load(adopted, blank(adopted))
    jax.tree.map(np.testing.assert_array_equal, state.params["image"], trees["params"]["image"])
    expected = {"image_projection", "text", "text_projection", "logit_scale"}
    assert named("\n".join(lines), "fresh") == expected


@pytest.mark.check
def test_the_text_encoder_of_another_checkpoint(tmp_path):
    """Its sizes are its own, its projection of texts is fresh; the image encoder and what the run does stay."""
    narrow = tiny("clip", **{"model.context_length": 24, "model.text_activation": "gelu"})
    narrow.model.size, size = "custom", SIZES["tiny"]._replace(text_width=32, text_heads=2)
    narrow.model.custom = ConfigDict(size._asdict())
    folder, texts = saved(run_config.to_json(narrow))
    for method in ("image_encoder", "clip"):
        images = written(tmp_path / method, method)
        asked = tiny("clip", init=str(tmp_path / method), init_text=folder.name)
        adopted = adopted_config.adopt(asked)
        assert (adopted.model.context_length, adopted.model.text_activation) == (24, "gelu")
        assert size_of(adopted.model) == size
        state, lines = warm_start.load(adopted, blank(adopted))
        expected = {"image": images["params"]["image"], "text": texts["params"]["text"]}
        assert named("\n".join(lines), "loaded") >= {"image", "text"}
        assert "text_projection" in named("\n".join(lines), "fresh")
        jax.tree.map(np.testing.assert_array_equal, {name: state.params[name] for name in expected}, expected)
        assert adopted.optimizer.part_rates.text == adopted.optimizer.loaded_rate
    for field, value in (("text_width", 48), ("text_depth", 9)):
        wrong = run_config.from_json(run_config.to_json(asked))
        wrong.model.custom[field] = value
        with pytest.raises(ValueError, match=rf"custom\.{field} {value}: config\.init_text .* {getattr(size, field)}"):
            adopted_config.adopt(wrong, given=[f"model.custom.{field}"])
    asked.model.custom.text_width = 32
    assert size_of(adopted_config.adopt(asked, given=["model.custom.text_width"]).model) == size
    with pytest.raises(ValueError, match="has no text encoder: its method is image_encoder"):
        adopted_config.adopt(tiny("clip", init=folder.name, init_text=str(tmp_path / "image_encoder")))
    with pytest.raises(ValueError, match=r"config\.init_text .* has model\.context_length 24"):
        adopted_config.adopt(asked, given=["model.context_length"])


@pytest.mark.check
def test_scale_and_bias_of_the_logits_are_fresh_if_a_projection_is(tmp_path):
    written(tmp_path / "siglip", "siglip")
    source = str(tmp_path / "siglip")
    for method, fields in (("dinotxt", {}), ("siglip", {"init_text": source})):
        adopted = adopted_config.adopt(tiny(method, init=source, **fields))
        fresh = blank(adopted)
        state, lines = warm_start.load(adopted, fresh)
        numbers = {"logit_scale", "logit_bias"} & {*fresh.params}
        assert numbers <= named("\n".join(lines), "fresh") & named("\n".join(lines), "not used")
        assert numbers and numbers.isdisjoint(adopted.optimizer.part_rates)
        for name in numbers:
            jax.tree.map(np.testing.assert_array_equal, state.params[name], fresh.params[name])


@pytest.mark.check
def test_a_decoder_too_narrow_for_the_patch_term_is_not_used(tmp_path):
    written(tmp_path / "mae", "mae", **NARROW)
    adopted = adopted_config.adopt(tiny("detailclip", init=str(tmp_path / "mae"), **{"model.decoder_depth": 1}))
    validate(adopted)
    assert (adopted.model.decoder_width, adopted.model.decoder_depth) == (None, 1)
    assert set(adopted.optimizer.part_rates) == {"image"}
    fresh = blank(adopted)
    state, lines = warm_start.load(adopted, fresh)
    jax.tree.map(np.testing.assert_array_equal, state.params["decoder"], fresh.params["decoder"])
    said = "\n".join(lines)
    assert named(said, "not used") == {"decoder", "pixel_head"} < named(said, "fresh")
    again = adopted_config.adopt(tiny("mae", init=str(tmp_path / "mae"), **{"masking.strategy": "random"}))
    assert again.model.decoder_width == 64 and "decoder" in again.optimizer.part_rates


NARROW = {"masking.strategy": "random", "model.decoder_width": 64, "model.decoder_depth": 2}


@pytest.mark.check
@pytest.mark.parametrize("method", ["clip", pytest.param("detailclip", marks=pytest.mark.slow)])
def test_a_run_goes_on_without_the_folder_it_has_started_from(tmp_path, method):
    """From its own config, which stays as it is: of the prototypes, clip keeps the number alone."""
    fields = {"preprocess.filter": "bicubic", "model.prototypes": 8}
    written(tmp_path / "source", "detailclip" if method == "clip" else "clip", **fields)
    asked = tiny(method, init=str(tmp_path / "source"))
    adopted = adopted_config.adopt(asked, workdir=tmp_path / "run")
    assert adopted.preprocess.filter == "bicubic"
    checkpoint.save_weights(tmp_path / "run", blank_trees(adopted), adopted, "zeros")
    shutil.rmtree(tmp_path / "source")
    again = adopted_config.adopt(asked, workdir=tmp_path / "run")
    assert run_config.to_json(again) == run_config.to_json(adopted)
    with pytest.raises(FileNotFoundError, match=r"config\.init '.*/source' is not a workdir"):
        adopted_config.adopt(asked, workdir=tmp_path / "other")


def blank_trees(config):
    state = blank(config)
    return {name: getattr(state, name) for name in ("params", "ema_params", "batch_stats", "running")}


def test_no_run_there_and_networks_that_do_not_fit(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.init 'nowhere' is not a workdir"):
        adopted_config.adopt(tiny("clip", init="nowhere"))
    written(tmp_path / "clip")
    with pytest.raises(FileNotFoundError, match=r"does not exist; did you mean '/.*/clip'\?"):
        adopted_config.config_of(str(tmp_path / "clop"))
    with pytest.raises(FileNotFoundError, match=r"does not exist; did you mean '/.*/clip'\?"):
        workdirs.pick_step(tmp_path / "clop")
    with pytest.raises(FileNotFoundError, match=r"has no run itself; give a run inside it, for example /.*/clip$"):
        workdirs.pick_step(tmp_path)
    other = tiny("clip", init=str(tmp_path / "clip"), **{"model.context_length": 12})
    with pytest.raises(
        checkpoint.CheckpointError, match=r"do not fit: text/positions: \(16, 64\) there, \(12, 64\) here"
    ):
        warm_start.load(other, blank(other))


def rate_config(**fields):
    return ConfigDict({"part_rates": {"image": 0.5}, "layer_decay": 0.1} | fields)


def test_rates_by_part_and_layer():
    """part_rate decay^(L + 1 - l), by hand for three blocks."""
    flat = interop.key_tables.flatten(optimizer.rate_factors(build("detailclip").state_shapes.params, rate_config()))
    expected = {
        "image/patch_embed/kernel": 0.5e-4,
        "image/positions": 0.5e-4,
        "image/blocks_0/mlp/fc1/bias": 0.5e-3,
        "image/blocks_1/norm1/scale": 0.5e-2,
        "image/blocks_2/attn/qkv/kernel": 0.5e-1,
        "image/norm/scale": 0.5,
        "text/token_embedding": 1,
        "decoder/blocks_0/norm1/scale": 1,
    }
    for path, factor in expected.items():
        assert flat[path] == pytest.approx(factor), path


def test_updates_are_scaled_and_the_plain_optimiser_is_left_alone():
    params = {"image": {"norm": {"scale": jnp.ones(2)}}, "decoder": {"norm": {"scale": jnp.ones(2)}}}
    plain = optax.sgd(1.0)
    assert optimizer.scaled_rates(plain, params, rate_config(part_rates={})) is plain
    scaled = optimizer.scaled_rates(plain, params, rate_config())
    updates, _ = scaled.update(params, scaled.init(params), params)
    np.testing.assert_array_equal(updates["image"]["norm"]["scale"], [-0.5, -0.5])
    np.testing.assert_array_equal(updates["decoder"]["norm"]["scale"], [-1, -1])


@pytest.fixture
def imported(tmp_path, monkeypatch):
    """A CLIP of ours, written in SLIP's layout and imported again; runs see one device."""
    one = mesh.make_mesh(jax.devices()[:1])
    monkeypatch.setattr(mesh, "make_mesh", lambda devices=None, fsdp=1: one)
    written(tmp_path / "clip")
    _, variables, made = checkpoint.load(tmp_path / "clip")
    tensor_files.write(tmp_path / "clip.safetensors", interop.to_state_dict(variables, made, "clip"))
    _, again, read = interop.load(tmp_path / "clip.safetensors")
    checkpoint.save_weights(tmp_path / "imported", again, read, "clip.safetensors")
    return tiny("detailclip", init=str(tmp_path / "imported"), **{"optimizer.loaded_rate": 0.1, "total_steps": 1})


@pytest.mark.check
def test_a_run_takes_its_networks_from_an_imported_state_dict(imported, tmp_path):
    imported.model.size = "B/32"
    run = pretraining.prepare(imported, tmp_path / "run")
    assert run.config.model.size == "tiny" and run.config.optimizer.part_rates["image"] == 0.1
    assert not (tmp_path / "run").exists()
    failures.claim(run)
    saved = run_config.from_json((tmp_path / "run/config.json").read_text())
    assert saved.init == imported.init and saved.model.size == "tiny"
    pretraining.prepare(imported, tmp_path / "run")  # the same command again: the same config, and the same workdir


@pytest.mark.slow
def test_a_run_starts_from_it_and_goes_on_from_its_own_checkpoint(imported, tmp_path, capsys):
    assert training.train(pretraining.prepare(imported, tmp_path / "run")) == 0
    printed = capsys.readouterr().out
    assert "loaded        image" in printed and "fresh         decoder" in printed
    imported.total_steps = 2
    shutil.rmtree(imported.init)
    assert training.train(pretraining.prepare(imported, tmp_path / "run")) == 0
    printed = capsys.readouterr().out
    assert "resuming from the checkpoint of step 1" in printed and "starting from" not in printed


@pytest.mark.slow
def test_two_processes_start_from_it_as_one_does(tmp_path):
    """Each puts its own shards onto its own devices: the first losses are equal."""
    written(tmp_path / "clip")
    fields = SMALL | {"init": tmp_path / "clip", "log_every": 1, "views.crops.large.size": 32}
    flags = ["--config=tests/configs/smallest.py", *(f"--config.{name}={value}" for name, value in fields.items())]
    losses = {}
    for name, command in {
        "two": ["launch/local.sh", "2"],
        "one": [sys.executable, "-m", "detailclip_jax.main"],
    }.items():
        devices = {"JAX_NUM_CPU_DEVICES": "2"} if name == "one" else {}
        environment = os.environ | QUICK | {"PYTHON": sys.executable} | devices
        run = [*command, *flags, f"--workdir={tmp_path / name}"]
        result = subprocess.run(run, cwd=CONTINUE.parents[1], env=environment, capture_output=True, text=True)
        assert result.returncode == 0 and "loaded        image" in result.stdout, result.stdout + result.stderr
        losses[name] = [line["loss"] for line in read_lines(tmp_path / name / "metrics.jsonl")]
    assert len(losses["two"]) == 4 and losses["two"] == pytest.approx(losses["one"], rel=1e-5)


@pytest.mark.check
def test_running_statistics_come_with_their_networks(tmp_path):
    clean = {"clean": {"count": 1, "size": 32}}
    enclosing = {"enclosing": {"count": 1, "size": 32, "kind": "enclosing"}}
    trees = written(tmp_path / "aclip", "aclip", crops=enclosing, **{"views.teacher": "enclosing"})
    state, _ = warm_start.load(*with_blank("aclip", tmp_path / "aclip", enclosing, **{"views.teacher": "enclosing"}))
    jax.tree.map(np.testing.assert_array_equal, state.batch_stats, trees["batch_stats"])
    state, _ = warm_start.load(*with_blank("slip", tmp_path / "aclip", clean))
    expected = {"student": {"ssl_head": trees["batch_stats"]["student"]["ssl_head"]}, "teacher": {}}
    jax.tree.map(np.testing.assert_array_equal, state.batch_stats, expected)


def with_blank(method, init, crops, **fields):
    adopted = adopted_config.adopt(tiny(method, crops=crops, init=str(init), **fields))
    return adopted, blank(adopted)


@pytest.mark.check
def test_further_class_tokens_are_fresh_and_those_of_the_checkpoint_stay(tmp_path):
    trees = written(tmp_path / "clip")
    adopted = adopted_config.adopt(tiny("clip", init=str(tmp_path / "clip"), **{"model.class_tokens": 2}))
    fresh = blank(adopted)
    state, _ = warm_start.load(adopted, fresh)
    np.testing.assert_array_equal(state.params["image"]["extra_tokens"], fresh.params["image"]["extra_tokens"])
    np.testing.assert_array_equal(state.params["image"]["cls_token"], trees["params"]["image"]["cls_token"])
    written(tmp_path / "two", **{"model.class_tokens": 2})
    assert adopted_config.adopt(tiny("clip", init=str(tmp_path / "two"))).model.class_tokens == 2


@pytest.mark.check
def test_of_further_class_tokens_those_that_the_checkpoint_has_are_loaded(tmp_path):
    trees = written(tmp_path / "two", **{"model.class_tokens": 2})
    adopted = adopted_config.adopt(tiny("clip", init=str(tmp_path / "two"), **{"model.class_tokens": 3}))
    fresh = blank(adopted)
    state, lines = warm_start.load(adopted, fresh)
    known = trees["params"]["image"]["extra_tokens"]
    np.testing.assert_array_equal(state.params["image"]["extra_tokens"], np.concatenate([known, 0 * known]))
    assert "  class tokens  3 (checkpoint: 2)" in lines


@pytest.mark.check
def test_text_positions_are_stretched_to_a_longer_context(tmp_path):
    trees = written(tmp_path / "clip", **{"model.context_length": 24})
    asked = tiny("clip", init=str(tmp_path / "clip"), init_text_positions="longclip", **{"model.context_length": 36})
    adopted = adopted_config.adopt(asked)
    assert adopted.model.context_length == 36
    state, said = warm_start.load(adopted, blank(adopted))
    expected = stretched_text(np.asarray(trees["params"]["text"]["positions"]), 36, "longclip")
    np.testing.assert_array_equal(state.params["text"]["positions"], expected)
    assert "  context       36 tokens: 24 text positions of the checkpoint, stretched (longclip)" in said
    asked.model.context_length = 24  # an import that has this context already, such as Long-CLIP
    state, _ = warm_start.load(same := adopted_config.adopt(asked), blank(same))
    np.testing.assert_array_equal(state.params["text"]["positions"], trees["params"]["text"]["positions"])
    kept = adopted_config.adopt(tiny("clip", init=str(tmp_path / "clip"), **{"model.context_length": 36}))
    assert kept.model.context_length == 24
    for field in ("optimizer.loaded_rate", "optimizer.layer_decay"):
        with pytest.raises(ValueError, match=rf"{field} 0.5 is for networks that are loaded.* set it to 1"):
            adopted_config.adopt(tiny("clip", **{field: 0.5}))
    asked.model.context_length = 40
    with pytest.raises(ValueError, match=r"context_length 40: .* makes at least 24 and at most 36 of 24"):
        adopted_config.adopt(asked)
    asked.init_text_positions, asked.model.context_length = "linear", 16
    with pytest.raises(ValueError, match="makes at least 24 of 24"):
        adopted_config.adopt(asked)
    asked.init_text_positions = "keep"
    with pytest.raises(ValueError, match=r"stretch its positions with --config\.init_text_positions=linear or longcl"):
        adopted_config.adopt(asked, given=["model.context_length"])


@pytest.mark.check
def test_tips_with_one_caption_goes_on_from_two_class_tokens_as_its_message_says(tmp_path):
    trees = written(tmp_path / "two", **{"model.class_tokens": 2})
    asked = tiny("tips", crops=LOCAL_CROP, init=str(tmp_path / "two"), **ONE_GLOBAL)
    with pytest.raises(ValueError) as refused:
        adopted_config.adopt(asked)
    option = "--config.model.class_tokens=1"
    check_names(refused.value, "tips", "model.class_tokens is 2", option, "sources:NAME,NAME")
    adopted = adopted_config.adopt(asked, given=["model.class_tokens"])
    validate(adopted)
    state, lines = warm_start.load(adopted, blank(adopted))
    assert "extra_tokens" not in state.params["image"] and "extra_tokens" not in state.ema_params["image"]
    np.testing.assert_array_equal(state.params["image"]["cls_token"], trees["params"]["image"]["cls_token"])
    assert "  class tokens  1 (checkpoint: 2)" in lines
    two = tiny("tips", crops=LOCAL_CROP, init=str(tmp_path / "two"), **ONE_GLOBAL)
    two.data.caption = "sources:captions,long"
    assert adopted_config.adopt(two).model.class_tokens == 2


LOCAL_CROP = {"local": {"count": 2, "size": 32}}
ONE_GLOBAL = {
    "views.crops.large.count": 1,
    "views.crops.large.blur_p": (0.5,),
    "views.crops.large.solarize_p": (0.0,),
    "masking.strategy": "random",
    "masking.ratio": 0.75,
}
CONTINUED = ["siglip2", *(pytest.param(name, marks=pytest.mark.slow) for name in ("siglip", "silc", "tips", "tipsv2"))]


@pytest.mark.check
@pytest.mark.parametrize("method", CONTINUED)
def test_the_later_methods_go_on_from_a_clip_by_their_own_configs(tmp_path, method):
    written(tmp_path / "clip")
    asked = run_config.load(f"{ROOT}/configs/beyond/continue_{method}.py")
    asked.init, asked.total_steps, asked.steps_per_epoch = str(tmp_path / "clip"), 4, 2
    adopted = adopted_config.adopt(asked)
    validate(adopted)
    state, lines = warm_start.load(adopted, blank(adopted))
    fresh = {"silc": {"prototype_head"}, "siglip": {"logit_bias"}, "siglip2": {"prototype_head", "logit_bias"}}
    new = fresh.get(method, {"prototype_head"}) | ({"mask_token"} if method in ("tips", "tipsv2", "siglip2") else set())
    assert named("\n".join(lines), "fresh") == new
    assert set(state.ema_params) == {"tipsv2": {"prototype_head"}, "siglip": set()}.get(
        method, {"image", "prototype_head"}
    )
    assert adopted.optimizer.part_rates["image"] == 0.1
    assert adopted.optimizer.part_rates.get("logit_bias") == (30.0 if "siglip" in method else None)
    assert adopted.accumulation > 1 and adopted.batch_size == 512


EMBEDDING = {"image", "image_projection", "text", "text_projection"}
POOLS = {
    "cosmos": {"word_projection", "patch_projection", "image_pool", "text_pool", "distill_scale"},
    "flair": {"caption_pool", "logit_bias"},
}


@pytest.mark.check
@pytest.mark.parametrize("method", ["flair", pytest.param("cosmos", marks=pytest.mark.slow)])
def test_methods_of_several_captions_go_on_from_a_clip(tmp_path, method):
    """Their pools are new, the encoders and the teacher are those of the checkpoint, and the momentum is constant."""
    trees = written(tmp_path / "clip")
    asked = run_config.load(f"{ROOT}/configs/beyond/continue_{method}.py")
    asked.init, asked.total_steps, asked.steps_per_epoch = str(tmp_path / "clip"), 4, 2
    adopted = adopted_config.adopt(asked)
    validate(adopted)
    state, lines = warm_start.load(adopted, blank(adopted))
    assert named("\n".join(lines), "fresh") == POOLS[method]
    moving = [line for line in lines if line.startswith("  teacher moves")]
    assert moving == (["  teacher moves with the constant momentum 0.999"] if method == "cosmos" else [])
    name = "token_embedding"
    np.testing.assert_array_equal(state.params["text"][name], trees["params"]["text"][name])
    assert set(state.ema_params) == (EMBEDDING if method == "cosmos" else set())
    assert adopted.accumulation == 8 and adopted.batch_size == 512
    assert method == "flair" or adopted.ema.start == adopted.ema.end == 0.999
