"""The benchmark of segmentation: FLOP against the formula, one and several devices, the projection, the command."""

import json

import cost
import jax
import pytest
from costs import dense, options, segmentation

from detailclip_jax.config import sizes
from detailclip_jax.training import mesh as meshes

LINEAR = "--config=configs/transfer/stickers_linear.py"


def config_of(*arguments):
    return dense.config_of(segmentation.TASK, options.parse(["segmentation", LINEAR, *arguments]))


def counted(config, num_devices=1, program=segmentation.evaluation_of):
    mesh = meshes.make_mesh(jax.devices()[:num_devices])
    lowered, images, _ = program(segmentation.build(config, 25, mesh))
    return dense.count_flops(lowered) / images


def test_the_forward_pass_costs_what_its_products_cost():
    """Blocks, attention, patch embedding and head, two operations per product; norms and softmax are below 5 %."""
    config = config_of("--crop=128")
    size = sizes.size_of(config.model)
    width, places = size.width, (128 // size.patch_size) ** 2
    tokens = places + 1
    block = 2 * tokens * 12 * width**2 + 4 * tokens**2 * width
    products = size.depth * block + 2 * places * 3 * size.patch_size**2 * width + 2 * places * 4 * width * 25
    assert products < counted(config) < 1.07 * products


@pytest.mark.slow
def test_a_frozen_encoder_is_not_differentiated():
    config = config_of()
    frozen = counted(config, program=segmentation.step_of)
    config.encoder.frozen = False
    assert frozen < 2 * counted(config) < counted(config, program=segmentation.step_of)


def test_the_projection_is_images_times_flop_over_peak_and_utilisation():
    config = config_of("--dtype=bfloat16", "--set=total_steps=100")
    assert config.total_steps == 100 and config.model.dtype == "bfloat16"
    hours = dense.projected_hours(3e12, config, num_devices=4, utilisation=0.5)
    assert hours == pytest.approx(100 * 16 * 3e12 / (4 * 312e12 * 0.5) / 3600)


def test_a_config_of_stickers_has_its_own_number_of_classes():
    assert segmentation.num_classes(config_of()) == 2  # objects and the background
    assert segmentation.num_classes(config_of("--set=data.labels=groups")) == 25
    assert segmentation.num_classes(dense.config_of(segmentation.TASK, options.parse(["segmentation"]))) == 150


@pytest.mark.slow
def test_the_command_prints_and_writes_what_it_measures(tmp_path, capsys):
    file = tmp_path / "found.json"
    flags = [
        "--batch=8",
        "--classes=5",
        "--run",
        "--rounds=1",
        "--devices=8",
        f"--json={file}",
        "--set=model.remat=dots",
    ]
    assert cost.main(["segmentation", LINEAR, *flags]) == 0
    (found,) = json.loads(file.read_text())
    assert found["devices"] == 8 and found["classes"] == 5 and found["step"]["images"] == 8
    for part in ("step", "evaluation"):
        assert all(found[part][name] > 0 for name in ("flops_per_image", "temp_bytes", "seconds"))
    assert found["evaluation"]["flops_per_image"] == pytest.approx(counted(config_of("--batch=8")), rel=0.05)
    assert "300 steps of 16 on 8 x A100 80GB" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config=configs/stickers.py"], "is not a config of segmentation"),
        ([LINEAR, "--utilisation=35"], "'35' is not a share"),
        ([LINEAR, "--crop=60", "--count-only"], "views.crop 60 is not a multiple of the patch size 8"),
        ([LINEAR, "--set=inference.mode=slid"], "did you mean 'slide'"),
    ],
)
def test_mistakes_end_with_a_message_and_code_2(flags, message, capsys):
    assert cost.main(["segmentation", *flags]) == 2
    assert message in capsys.readouterr().err
