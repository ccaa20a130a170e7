"""The benchmark of detection: loops are counted in full, parameters by part, shapes, synthetic batches, the command."""

import functools
import json

import cost
import jax
import numpy as np
import pytest
from costs import dense, detection, options
from tiny import looped

from detailclip_jax.dense import dense_experiment
from detailclip_jax.training import mesh as meshes

STICKERS = "--config=configs/transfer/stickers_detection.py"


def config_of(*arguments):
    return dense.config_of(detection.TASK, options.parse(["detection", STICKERS, *arguments]))


def built_of(config):
    return detection.build(config, 5, meshes.make_mesh(jax.devices()[:1]))


@functools.cache
def built_of_two():
    """The experiment for batches of two."""
    return built_of(config_of("--batch=2"))


def counted(config):
    return dense.count_flops(detection.detection_of(built_of(config))[0])


@pytest.mark.slow
def test_loops_over_stages_and_rois_are_counted_in_full(monkeypatch):
    known = built_of_two()  # how the stages run changes no parameter
    set_up = lambda *_: (known.setup, known.layout, known.initial, known.state_shapes)
    monkeypatch.setattr(dense_experiment.fine_tuning, "set_up", set_up)
    config = config_of("--batch=1")
    config.detector.options.update(unroll=False, roi_chunk=8)
    looped, straight = counted(config), counted(detection.straight(config))
    config.detector.options.update(unroll=True)
    unrolled = counted(config)
    assert looped < 0.9 * unrolled and unrolled < straight


def test_the_largest_shape_is_measured_and_image_size_replaces_all():
    assert detection.TASK.shape(config_of()) == (64, 64)
    paper = dense.config_of(detection.TASK, options.parse(["detection"]))
    assert detection.TASK.shape(paper) == (800, 1344)
    config = config_of("--image-size=96", "--batch=2")
    assert config.views.buckets == config.inference.buckets == ((96, 96),)
    assert (config.batch_size, config.inference.batch_size) == (2, 2)
    built = built_of(config)
    assert built.batch_shapes(detection.largest(config.views.buckets))["image"].shape == (2, 96, 96, 3)


def test_a_config_of_stickers_has_its_own_number_of_classes():
    assert detection.num_classes(config_of()) == 1
    assert detection.num_classes(config_of("--set=data.labels=groups")) == 24
    assert detection.num_classes(config_of("--set=data.labels=nouns")) == 96
    assert detection.num_classes(dense.config_of(detection.TASK, options.parse(["detection"]))) == 80


def test_parameters_are_counted_by_part():
    built = built_of_two()
    found = dense.parameters(built)
    assert list(found) == ["encoder", "pyramid", "FPN", "RPN", "stages"]
    assert sum(found.values()) == sum(x.size for x in jax.tree.leaves(built.state_shapes.params))
    assert found["RPN"] == (9 * 32 + 1) * 32 + (32 + 1) * 3 * 5  # a 3 x 3 convolution, objectness and four offsets


def test_synthetic_objects_are_valid_and_fill_every_slot():
    shapes = built_of_two().batch_shapes((32, 64))
    made = detection.synthetic(shapes, num_classes=5)
    assert {name: (x.shape, x.dtype) for name, x in made.items()} == {
        name: (x.shape, x.dtype) for name, x in shapes.items()
    }
    low, high = made["boxes"][..., :2], made["boxes"][..., 2:]
    assert (low >= 0).all() and (low < high).all() and (high <= [64, 32]).all()
    assert set(np.unique(made["labels"])) <= set(range(5)) and not made["crowd"].any()
    assert made["size"].tolist() == [[32, 64]] * 2


@pytest.mark.slow
@looped
def test_the_command_prints_and_writes_what_it_measures(tmp_path, capsys):
    file = tmp_path / "found.json"
    flags = ["--batch=1", "--classes=5", "--run", "--rounds=1", "--devices=1", f"--json={file}"]
    assert cost.main(["detection", STICKERS, *flags]) == 0
    (found,) = json.loads(file.read_text())
    assert found["command"] == "detection" and found["shape"] == [64, 64] and found["step"]["images"] == 1
    for part in ("step", "evaluation"):
        assert all(found[part][name] > 0 for name in ("flops_per_image", "temp_bytes", "seconds"))
    shown = capsys.readouterr().out
    assert "200 steps of 16 on 8 x A100 80GB" in shown and "parameters: encoder" in shown


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config=configs/transfer/ade20k_upernet.py"], "is not a config of detection"),
        ([STICKERS, "--image-size=60"], "60 x 60 has a side that is not a multiple of 16 pixels"),
        ([STICKERS, "--set=detector.options={'unrol': True}", "--count-only"], "did you mean 'unroll'"),
    ],
)
def test_mistakes_end_with_a_message_and_code_2(flags, message, capsys):
    assert cost.main(["detection", *flags]) == 2
    assert message in capsys.readouterr().err
