"""The message for each mistake that is refused before a run begins, and that nothing is written then."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from tiny import TWO_BLOCKS, check_names, tiny_config

from detailclip_jax import methods, pretraining
from detailclip_jax.config import run_config
from detailclip_jax.models import networks
from detailclip_jax.training import adopted_config, experiment, mesh, optimizer, sharding

CONFIGS = Path(__file__).parents[2] / "configs"
SMALLEST = Path(__file__).parents[1] / "configs/smallest.py"
TABLE = sharding.rules(networks.NETWORKS)
INIT = "--config.init=WORKDIR"


def prepare(spec, **fields):
    config = run_config.load(f"{spec}")
    config.update_from_flattened_dict({name.replace("__", "."): value for name, value in fields.items()})
    pretraining.prepare(config, "run")


def asked(method="clip", **fields):
    config = tiny_config(method)
    config.update_from_flattened_dict({name.replace("__", "."): value for name, value in fields.items()})
    return config


def adopt(**fields):
    adopted_config.adopt(asked(**fields))


def group(method, entry, fields):
    config = asked(method, model__custom=TWO_BLOCKS, optimizer__frozen=entry, **fields)
    pretraining.validate(config)
    experiment.group_rules(config, methods.build(config).networks)


def kernel_of(rows):
    return {"proj": {"kernel": jax.ShapeDtypeStruct((rows, 5), jnp.float32)}}


def schedules_without_length():
    config = run_config.load(f"{CONFIGS}/vitb16_yfcc.py")
    experiment.build_schedules(config, methods.build(config))


def chunks_that_do_not_fit():
    config = tiny_config("clip")
    config.accumulation = 3
    experiment.build(config, mesh.make_mesh(jax.devices()[:2]))


ADAPTERS = {"optimizer.lora": "image:4,text:2:8"}
FROZEN = [  # method, optimizer.frozen, other fields, words
    ("clip", "imag", {}, ("'imag'", "image", "text", "patch_embed", "final_norm", "image:-N")),
    ("clip", "decoder", {}, ("decoder", "image_projection")),
    ("dino", "text", {}, ("'text'", "image")),
    ("clip", "image:-3", {}, ("image:-3", "2 blocks", "from 1 to 2")),
    ("clip", "image:2", {}, ("image:2", "image:-N")),
    ("clip", "image_projection:-1", {}, ("image_projection:-1", "image:-N")),
    ("slip", "ssl_head", {}, ("ssl_head", "BatchNorm")),
    (
        "clip",
        "ssl_head",
        {},
        ("'ssl_head' is no part of this method", "text_projection, image_projection, logit_scale"),
    ),
    ("clip", "image:-1", {"model.scan": True}, ("image:-1", "model.scan", "False")),
    *(
        ("clip", entry, ADAPTERS, ("optimizer.frozen", repr(entry), "optimizer.lora", "leave one of the two out"))
        for entry in ("image", "text:-1")
    ),
]
REFUSED = {
    "fsdp 0": (lambda: mesh.make_mesh(fsdp=0), "mesh.fsdp 0", "8 devices", "[1, 2, 4, 8]"),
    "fsdp 3": (lambda: mesh.make_mesh(fsdp=3), "mesh.fsdp 3", "8 devices", "[1, 2, 4, 8]"),
    "fsdp 16": (lambda: mesh.make_mesh(fsdp=16), "mesh.fsdp 16", "8 devices", "[1, 2, 4, 8]"),
    "batch": (lambda: mesh.check_batch_size(20, mesh.make_mesh()), "batch_size 20", "8 devices", "16 and 24"),
    "small batch": (lambda: mesh.check_batch_size(3, mesh.make_mesh()), "batch_size 3", "smallest valid size is 8"),
    "batch in chunks": (lambda: mesh.check_batch_size(40, mesh.make_mesh(), 2), "8 devices of 2 chunks", "32 and 48"),
    "chunks of an experiment": (chunks_that_do_not_fit, "batch_size 8", "2 devices of 3 chunks", "6 and 12"),
    "best metric of no evaluator": (
        lambda: prepare(SMALLEST, best_metric="zeroshot/ema/top1", evaluate_every=4, evaluators={"zero_shot": {}}),
        "unknown best_metric 'zeroshot/ema/top1'",
        "zero_shot/ema/METRIC",
    ),
    "best metric without weights": (
        lambda: prepare(SMALLEST, best_metric="zero_shot/top1", evaluate_every=4, evaluators={"zero_shot": {}}),
        "unknown best_metric 'zero_shot/top1'",
        "zero_shot/student/METRIC",
    ),
    "batch of a run": (lambda: prepare(f"{SMALLEST}:method=clip", batch_size=12), "batch_size 12", "8 and 16"),
    "array without a sharding rule": (
        lambda: sharding.shardings({"params": {"image": {"gate": jnp.ones(8)}}}, mesh.make_mesh(), TABLE),
        "no rule of models.registry covers ['params/image/gate']",
    ),
    "axis that fsdp does not divide": (
        lambda: sharding.shardings(kernel_of(12), mesh.make_mesh(fsdp=8), TABLE),
        "mesh.fsdp 8 does not divide axis 0 of proj/kernel",
        "valid values: 1, 2, 4",
    ),
    "parameter without a decay rule": (
        lambda: optimizer.labels(
            {"image": {"extra": jnp.zeros(2)}}, optimizer.rules(networks.NETWORKS, tiny_config("clip").model)
        ),
        "no rule of models.registry covers ['image/extra']",
    ),
    "schedules without a length": (
        schedules_without_length,
        "set config.total_steps, or call run_config.resolve",
    ),
    "nothing to train": (
        lambda: experiment.build(asked(optimizer__frozen=",".join(methods.build(asked()).networks))),
        "optimizer.frozen",
        "leaves nothing to train",
    ),
    **{
        f"{entry} of {method} frozen": (functools.partial(group, method, entry, fields), *words)
        for method, entry, fields, words in FROZEN
    },
    "random encoder, frozen": (lambda: adopt(optimizer__frozen="image"), "optimizer.frozen 'image'", INIT),
    "random blocks, frozen": (
        lambda: adopt(optimizer__frozen="patch_embed,text:-1"),
        "optimizer.frozen 'text:-1'",
        INIT,
    ),
    "vocabulary of another tokenizer": (
        lambda: prepare(SMALLEST, model__vocab_size=32000),
        "vocabulary of 32000 tokens",
        "CLIP's 49408; give the file",
    ),
    **{
        f"{config} without a checkpoint": (
            lambda config=config: prepare(f"{CONFIGS}/{config}.py"),
            f"this config continues a checkpoint: give {INIT}",
        )
        for config in ("vitb16_continue", "beyond/continue_flair", "beyond/lit", "beyond/dinotxt")
    },
    "LiT of another method": (lambda: prepare(f"{CONFIGS}/beyond/lit.py:method=slip"), "method=slip", "clip", "siglip"),
    "text encoder of a checkpoint alone": (lambda: adopt(init_text="runs/clip"), "init_text goes with init"),
    "positions of no checkpoint": (
        lambda: adopt(init_text_positions="linear"),
        "init_text_positions 'linear' stretches the positions of a checkpoint",
    ),
}


@pytest.mark.parametrize("mistake", REFUSED)
def test_a_mistake_is_named_with_the_way_out_and_nothing_is_written(mistake, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    call, *words = REFUSED[mistake]
    with pytest.raises(ValueError) as refused:
        call()
    check_names(refused.value, *words)
    assert not list(tmp_path.iterdir())
