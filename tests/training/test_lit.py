"""LiT (configs/beyond/lit.py): an imported image encoder stays as it is, and texts learn what it sees."""

import shutil
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from launching import environment, losses, started
from library_features import check_export
from tiny import SHORT_RUN, copied, on_one_device

from detailclip_jax import evaluate, export, import_torch, load, pretraining
from detailclip_jax.config import run_config
from detailclip_jax.training import adopted_config, checkpoint, experiment, mesh, warm_start
from detailclip_jax.training import train as training

torch = pytest.importorskip("torch")
timm = pytest.importorskip("timm.models.vision_transformer")
open_clip = pytest.importorskip("open_clip")

ROOT = Path(__file__).parents[2]
WIDTH = 48


def noisy(module):
    """A module of noise, so that no parameter has a value that hides a mistake."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return module.eval()


def encoder():
    return noisy(timm.VisionTransformer(32, 8, embed_dim=WIDTH, depth=2, num_heads=4, num_classes=0))


def clip():
    image = {"layers": 2, "width": WIDTH, "head_width": 12, "patch_size": 8, "image_size": 32}
    text = {"context_length": 12, "vocab_size": 49408, "width": 32, "heads": 4, "layers": 1}
    return noisy(open_clip.model.CLIP(24, image, text, quick_gelu=True))


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """Workdirs of imports, by layout: image encoders alone, and a CLIP."""
    folder = tmp_path_factory.mktemp("lit")
    vit = encoder().state_dict()
    files = {
        "timm": vit,
        "dino": {"teacher": {f"backbone.{k}": v for k, v in vit.items()} | {"head.last_layer.weight_v": torch.ones(3)}},
        "openai": {**clip().state_dict(), "input_resolution": torch.tensor(32)},
    }
    for layout, content in files.items():
        torch.save(content, folder / f"{layout}.pth")
        given = [
            f"--from={layout}",
            str(folder / f"{layout}.pth"),
            f"--out={folder / layout}",
            "--num-heads=4",
            "--crop-ratio=1",
        ]
        assert import_torch.main([*given, *(["--text-heads=4"] if layout == "openai" else [])]) == 0
    return folder


def asked(init, spec="", **fields):
    config = run_config.load(f"{ROOT}/configs/beyond/lit.py{spec}")
    config.update_from_flattened_dict(SHORT_RUN | {"init": str(init)} | fields)
    return config


def equal(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.fixture(scope="module")
def trained(imported):
    """The workdir of a run from the timm import."""
    with on_one_device():
        assert training.train(pretraining.prepare(asked(imported / "timm"), imported / "run")) == 0
    return imported / "run"


@pytest.mark.check
def test_the_encoder_stays_and_its_feature_is_the_embedding(imported, trained):
    before, model = load(imported / "timm"), load(trained)
    assert model.config.method == "siglip" and model.config.optimizer.part_rates.to_dict() == {"image": 1.0}
    equal(model.params["image"], before.params["image"])
    equal(model.params["image_projection"]["proj"]["kernel"], np.eye(WIDTH))
    assert model.params["text_projection"]["proj"]["kernel"].shape == (64, WIDTH)
    images = list(np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8))
    np.testing.assert_allclose(model.encode_image(images), before.encode_image(images), atol=1e-6)
    assert model.encode_text(["a frog"]).shape == (1, WIDTH)
    assert model.config.preprocess == before.config.preprocess


@pytest.mark.slow
def test_a_stopped_run_ends_with_the_same_bits(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/checkpoints/4")
    config = asked(load(trained).config.init)
    with on_one_device():
        assert training.train(pretraining.prepare(config, tmp_path / "run")) == 0
    equal(load(tmp_path / "run").params, load(trained).params)
    first = checkpoint.load(trained, 2)[1]["params"]
    assert not np.array_equal(
        first["text_projection"]["proj"]["kernel"], load(trained).params["text_projection"]["proj"]["kernel"]
    )


@pytest.mark.check
@pytest.mark.parametrize(
    ("layout", "spec", "kept"),
    [
        pytest.param("dino", ":method=clip", {"image"}, marks=pytest.mark.slow),  # alone, as that of `trained`
        ("openai", ":method=clip", {"image", "image_projection"}),
    ],
)
def test_every_kind_of_checkpoint_is_locked(imported, layout, spec, kept):
    """Of a CLIP, the projection of images is locked too, and its text encoder is trained further."""
    config = adopted_config.adopt(asked(imported / layout, spec))
    pretraining.validate(config)
    exp = experiment.build(config, mesh.make_mesh(jax.devices()[:1]))
    state, _ = warm_start.load(config, exp.init(0))
    before = copied(state.params)
    _, variables, _ = checkpoint.load(imported / layout)
    for name in kept:
        equal(before[name], variables["params"][name])
    shapes = jax.eval_shape(lambda: experiment.dummy_batch(config, 8))
    rng = np.random.default_rng(0)
    batch = jax.tree.map(lambda leaf: rng.integers(1, 250, leaf.shape).astype(leaf.dtype), shapes)
    for _ in range(3):
        state, _ = exp.train_step(state, exp.put(batch))
    moved = {
        name
        for name in before
        if not all(map(np.array_equal, *map(jax.tree.leaves, (before[name], state.params[name]))))
    }
    assert moved == before.keys() - {"image", "image_projection"}
    assert config.model.image_is_embedding == (layout != "openai")
    assert before["text_projection"]["proj"]["kernel"].shape[-1] == (24 if layout == "openai" else WIDTH)


@pytest.mark.check
@pytest.mark.parametrize(
    "to",
    [
        "open_clip",
        "timm",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("slip", "huggingface", "safetensors")),
    ],
)
def test_it_is_exported_and_equal(trained, tmp_path, to):
    """Formats with an image projection hold the unit matrix there."""
    out = tmp_path / "out.safetensors"
    assert export.main([f"--checkpoint={trained}", f"--to={to}", f"--out={out}"]) == 0
    assert len(check_export(to, trained, out)) == (1 if to == "timm" else 2)


@pytest.mark.check
def test_it_is_evaluated_on_words(trained, capsys):
    assert evaluate.main([f"--checkpoint={trained}", "--tasks=zero_shot:stickers", "--num-examples=8"]) == 0
    assert "zero_shot stickers, top-1" in capsys.readouterr().out


@pytest.mark.slow
def test_one_command_trains(imported, tmp_path):
    flags = [f"--config.{name}={value}" for name, value in SHORT_RUN.items()]
    given = ["--config=configs/beyond/lit.py", f"--config.init={imported / 'timm'}", *flags]
    command = [sys.executable, "-m", "detailclip_jax.main", *given, f"--workdir={tmp_path / 'run'}"]
    run = started(command, environment(tmp_path / "cache"))
    output, _ = run.communicate(timeout=300)
    assert run.returncode == 0, output
    assert "image/.* frozen" in " ".join(output.split()) and set(losses(tmp_path / "run"))
