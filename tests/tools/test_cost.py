"""The tools that measure costs: losses alone, texts, a day on a GPU."""

import json
from pathlib import Path

import cost
import jax
import numpy as np
import pytest
from costs import gpu_day, loss, products, texts, views

from detailclip_jax.benchmarks import data_rate, step, variants
from detailclip_jax.data.decoding import Decoded, image_of
from detailclip_jax.data.views import Crop, crops_from_config, cut
from detailclip_jax.inference import batching
from detailclip_jax.training.mesh import make_mesh

ROOT = Path(__file__).parents[2]
SMALLEST = str(ROOT / "tests/configs/smallest.py")


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch):
    monkeypatch.chdir(ROOT)


def run(*arguments):
    return cost.main([*arguments])


def as_json(tmp_path, *arguments):
    file = tmp_path / "results" / "out.json"
    assert run(*arguments, f"--json={file}") == 0
    return json.loads(file.read_text())


@pytest.mark.slow
def test_the_loss_alone_takes_less_memory_where_it_is_shared(tmp_path):
    arguments = ["loss", f"--config={SMALLEST}", "--method=clip", "--term=clip", "--batch=512", "--width=16"]
    (alone,) = as_json(tmp_path, *arguments, "--devices=1")
    (shared,) = as_json(tmp_path, *arguments, "--devices=8", "--run", "--rounds=1")
    assert (alone["width"], alone["seconds"], shared["devices"]) == (16, None, 8)
    assert shared["argument_bytes"] < alone["argument_bytes"] / 7 and shared["seconds"] > 0


@pytest.mark.parametrize("term", ["patch", "all"])
def test_every_term_has_a_gradient_alone(term):
    made = variants.build(SMALLEST, {"batch": 8})
    mesh = step.make_mesh(made, jax.devices()[:2])
    gradient, shapes = loss.build(step.experiments.build(made.config, mesh), term, mesh)
    value, grads = jax.eval_shape(gradient, *shapes)
    shape_of = lambda leaf: leaf.shape
    assert value.shape == () and jax.tree.map(shape_of, grads) == jax.tree.map(shape_of, shapes[0])


@pytest.mark.slow
def test_a_day_on_a_gpu_runs_on_the_cpu(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(products, "SIDES", {"cpu": 16})
    monkeypatch.setattr(gpu_day, "COMPARED", {"remat": gpu_day.COMPARED["remat"], "bad": {"model.attention": "cudnn"}})
    out = tmp_path / "day"
    arguments = ["--method=clip", "--batch=4", "--devices=1", "--rounds=1", f"--out={out}"]
    assert run("gpu-day", f"--config={SMALLEST}", *arguments) == 0
    records = {record["section"]: record for record in json.loads((out / "results.json").read_text())}
    assert {record["status"] for record in records.values()} == {"ok"}, records
    assert [*records] == [section.name for section in gpu_day.SECTIONS]
    assert max(records["golden"]["difference"].values()) < 1e-5
    assert records["against the CPU"]["gradient_difference"] == 0
    assert records["step"]["pairs_per_second"] > 0 and records["step"]["planned_gibibytes"] > 0
    compared = records["settings"]["times_as_fast"]
    assert len(compared["remat"]) == 3 and compared["bad"].startswith("ValueError: model.attention 'cudnn' cannot run")
    assert records["determinism"]["equal_by_default"] is True
    assert 0 <= records["data"]["data_wait"] <= 1
    page = (out / "page.md").read_text()
    assert "## golden: ok" in page and page.strip() == capsys.readouterr().out.strip()


@pytest.mark.slow
def test_texts_are_measured_whole_and_cut(tmp_path, capsys):
    arguments = ["--method=clip", "--devices=1", "--num-texts=300", "--rounds=1", "--set", "model.context_length=40"]
    (record,) = as_json(tmp_path, "texts", f"--config={SMALLEST}", *arguments)
    assert {name: len(rate) for name, rate in record["texts_per_second"].items()} == {"all tokens": 3, "cut": 3}
    assert record["times_as_fast"][0] > 0 and "custom, 40 tokens" in capsys.readouterr().out
    tokens = texts.example_tokens(300, 40, 60)
    assert batching.cut_lengths(tokens, (16, 32), 256).tolist() == [16] * 300 and (tokens[:, 15:] == 0).all()


def test_texts_of_a_method_without_captions_are_refused(capsys):
    assert run("texts", f"--config={SMALLEST}", "--method=dino", "--devices=1") == 2
    assert "dino has no text encoder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (NotImplementedError("no such kernel\nand more"), "NotImplementedError: no such kernel"),
        (AssertionError(), "AssertionError"),
    ],
)
def test_a_section_that_fails_or_comes_late_is_reported(tmp_path, monkeypatch, capsys, error, reason):
    def fails(target):
        raise error

    sections = [gpu_day.Section("first", "Something.", fails), gpu_day.Section("second", "More.", lambda target: {})]
    monkeypatch.setattr(gpu_day, "SECTIONS", sections)
    monkeypatch.setattr(gpu_day.time, "monotonic", iter([0, 1, 1, 9, 700]).__next__)
    assert run("gpu-day", f"--config={SMALLEST}", "--batch=4", "--devices=1", f"--out={tmp_path}") == 0
    first, second = json.loads((tmp_path / "results.json").read_text())
    assert (first["status"], first["reason"]) == ("failed", reason)
    assert (second["status"], second["reason"]) == ("left out", "time limit")
    assert "## first: failed" in capsys.readouterr().out


def test_gpu_day_without_a_gpu_asks_what_to_run(capsys):
    assert run("gpu-day", "--devices=1") == 2
    assert "say what to run" in capsys.readouterr().err


def test_the_share_of_the_product_rate_is_taken_round_by_round():
    made = variants.build(SMALLEST, {"dtype": "bfloat16", "batch": 4})
    result = step.Result(made, None, flops=3e9, state={})
    found = products.measured(result, [2.0, 6.0], {"float32": [1e9, 1e9], "bfloat16": [8e9, 4e9]})
    assert found.seconds.median == 4 and found.rates["bfloat16"] == (6e9, 4e9, 8e9)
    assert found.share == (0.625, 0.5, 0.75)  # 12 GFLOP in 2 s at 8 GFLOP/s, and in 6 s at 4


def test_products_count_all_devices(monkeypatch):
    monkeypatch.setattr(products, "SIDES", {"cpu": 16})
    product = products.Product("bfloat16", make_mesh(), times=3)
    product()
    assert product.operations == 3 * 8 * 2 * 16**3
    made = product._multiply(product.left, product.right)
    assert made.dtype == np.float32 and made.shape == (8 * 16, 16) and not made.is_fully_replicated


def test_torchvision_makes_the_same_kind_of_views(tmp_path, capsys):
    transforms = pytest.importorskip("torchvision.transforms")
    crop = variants.build(None, {}).config.views.crops.large
    made = views.transforms({"large": crops_from_config({"large": crop})["large"]})
    image = views.their_decode(data_rate.SyntheticImages()[0]["image"])
    assert [tuple(one(image).shape) for one in made] == [(3, 224, 224)] * 2
    assert isinstance(made[0].transforms[0], transforms.RandomResizedCrop) and made[0].transforms[0].scale == (0.5, 1.0)
    found = as_json(tmp_path, "views", "--examples=2", "--rounds=1")
    assert [one["stage"] for one in found] == ["views", "decode"] and "times as fast" in capsys.readouterr().out
    assert run("views", "--method=aclip") == 2
    assert "torchvision has no crop of kind 'enclosing'" in capsys.readouterr().err


def test_resizing_alone_agrees_with_torchvision_s():
    """What is compared is the same work: a cut without a draw gives the same pixels on both sides."""
    pytest.importorskip("torchvision")
    from PIL import Image
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as tv

    image = image_of(data_rate.SyntheticImages(48, 64)[0]["image"]).decoded().pixels
    ours = cut(Decoded(image, 48, 64), Crop(size=32), (6, 4, 50, 40))
    theirs = tv.resized_crop(Image.fromarray(image), 4, 6, 36, 44, [32, 32], InterpolationMode.BICUBIC)
    np.testing.assert_array_equal(ours, np.asarray(theirs))
