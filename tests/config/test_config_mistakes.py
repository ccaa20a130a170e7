"""What a mistake in a config, its file or its settings is answered with: the thing and the way out."""

from pathlib import Path

import pytest

from detailclip_jax import evaluation
from detailclip_jax.config import default, run_config, settings, sizes
from detailclip_jax.pretraining import validate

ROOT = Path(__file__).parents[2]
TINY = sizes.SIZES["tiny"]._asdict()
MAE = {"method": "mae", "masking.strategy": "random"}


def spec(given, _):
    run_config.load(given)


def baseline(given, _):
    run_config.made_for(given, "clip")


def file(text, folder):
    (folder / "c.py").write_text(text)
    run_config.load(f"{folder}/c.py:arg")


def name(given, _):
    run_config.check_overrides(default(), ["seed", given])


def value(fields, _, base="configs/stickers.py"):
    config = run_config.load(base)
    config.update_from_flattened_dict(fields)
    validate(config)
    evaluation.plan(config)


def crop(fields, _):
    value({f"views.crops.{field}": given for field, given in fields.items()}, _, "configs/baselines/ibot.py")


def length(given, _):
    fields, set_names, num_examples = given
    config = default()
    config.update_from_flattened_dict(fields)
    run_config.resolve(run_config.without_overridden(config, set_names), num_examples)


def setting(text, _):
    settings.set_fields(dict([settings.parse_setting(text)]))(default())


MISTAKES = [  # what reads it, the mistake, words of the message, the error if it is not ValueError
    (spec, "configs/sticker.py", r"did you mean 'configs/stickers.py'\?$", FileNotFoundError),
    *(
        (spec, path, rf"unknown config file '{path}'; known: .*configs/stickers.py", FileNotFoundError)
        for path in ("configs/none.py", "elsewhere/mine.py")
    ),
    (spec, "configs/stickers.py:metod=clip", "unknown config argument 'metod'; known: method"),
    (spec, "configs/vitb16_yfcc.py:epochs=many", "config argument epochs=many: expected int"),
    (spec, "configs/vitb16_yfcc.py:teacher=larger", "config argument teacher=larger: known are same, enclosing"),
    (
        spec,
        "configs/stickers.py:method=clip,teacher=enclosing",
        "teacher=enclosing: known are same and, for detailclip, enclosing",
    ),
    (spec, "configs/stickers.py:local=False", "local=False: method detailclip has no local crops"),
    (spec, "configs/vitb16_yfcc.py:preset=authors", "config argument preset=authors: known are paper, reference"),
    (spec, "configs/ablation_table4.py:row=6", "row=6: table 4 has rows 1 to 5"),
    *(
        (baseline, path, r"write --config=.*configs/baselines/clip\.py")
        for path in ("configs/vitb16_yfcc.py", "configs/baselines/dino.py")
    ),
    (file, "x = 1", "has no function get_config"),
    (file, "def get_config(): return 1", "takes no argument"),
    (file, "def get_config(arg): return 5", r"c.py: get_config returns 5, not a config; begin it with .*default\(\)"),
    (name, "batchsize", "did you mean 'batch_size'.*Known fields: accumulation, batch_size"),
    (name, "model.sise", "did you mean 'model.size'.*Known fields of 'model': attention"),
    (name, "image_size", "did you mean 'model.image_size'"),
    (name, "views.crops.larg.size", "did you mean 'views.crops.large.size'.*Known fields of 'views.crops': large"),
    (name, "modle.size", "did you mean 'model.size'.*Known fields of 'model': attention"),
    (name, "optim.lr", "did you mean 'optimizer'.*Known fields of 'optimizer': betas"),
    (name, "model.custom.width", "'model.custom.width'.*'model.custom' is empty: only a config file can fill it"),
    (name, "optimizer.qqq", r"unknown config field 'optimizer.qqq'\. Known fields of 'optimizer': betas"),
    (name, "lerning_rate", "did you mean 'optimizer.learning_rate'"),
    (name, "seed.x", "'seed' is a value, not a group; it has no field 'x'"),
    (name, "qqq", r"unknown config field 'qqq'\. Known fields"),
    (setting, "views.crops=None", "views.crops is a group, not a value"),
    (setting, "optimizer=3", "optimizer is a group, not a value"),
    (setting, "optimizer={}", "optimizer is a group, not a value"),
    (setting, "data={'path': 'x'}", "data is a group, not a value"),
    (setting, "data.path=None", "data.path is a text"),
    (setting, "masking.ratio=None", "masking.ratio is a number, 0.5 now; None is not"),
    (setting, "masking=" + "(" * 5000, "masking is a group"),
    (value, {"method": "detailclp"}, "unknown method 'detailclp'; did you mean 'detailclip'"),
    (value, {"model.size": "B/15"}, "unknown model.size 'B/15'; did you mean 'B/16'"),
    (value, {"data.source": "imagenet"}, "unknown data.source 'imagenet'. Known: stickers"),
    (value, {"masking.strategy": "lowest"}, "unknown masking.strategy 'lowest'"),
    (value, {"model.image_size": 65}, "model.image_size 65 is not a multiple of the patch size 8; set it to 64 or 72"),
    (value, {"model.image_size": 4}, "model.image_size 4 is not a multiple of the patch size 8; set it to 8$"),
    (value, {"model.image_size": 0}, "model.image_size 0 must be at least 1"),
    (value, {"model.image_size": 72}, "views.crops.large.size 64 must equal model.image_size 72"),
    (value, {"log_every": 0}, "log_every 0 must be at least 1"),
    (value, {"views.mixup": 0.8}, "views.mixup 0.8 .* method detailclip has no term that reads them; set it to 0"),
    (value, {"views.cutmix": 1.0}, "views.cutmix 1.0 .* method detailclip has no term that reads them"),
    (value, {"views.mixup": -0.2}, "views.mixup -0.2 must be at least 0"),
    (value, {"total_steps": -1}, "total_steps -1 must be at least 1"),
    (value, {"total_steps": 2**63}, "total_steps 9223372036854775808 must be from 0 to 2147483647"),
    (value, {"model.custom": {**TINY, "depth": 5000}, "model.size": "custom"}, "custom.depth .* from 1 to 1000"),
    (
        value,
        {"model.custom": {"width": 96, "depth": 3, "num_heads": 4}, "model.size": "custom"},
        "model.custom lacks patch_size; its fields are patch_size, width",
    ),
    (
        value,
        {"model.custom": {**TINY, "deepth": 3}, "model.size": "custom"},
        "model.custom has the unknown fields deepth; its",
    ),
    (
        value,
        {"model.custom": {**TINY, "num_heads": 0}, "model.size": "custom"},
        "custom.num_heads 0 must be .* from 1 to",
    ),
    (value, {"model.vocab_size": -1}, "model.vocab_size -1 must be at least 1"),
    (value, {"model.num_classes": -1}, "model.num_classes -1 must be from 0 to 2147483647"),
    (value, {"data.text_buckets": (32, 2**31)}, r"data.text_buckets .32, 2147483648. must be from 0 to 2147483647"),
    (value, {"optimizer.betas": (0.9,)}, r"optimizer.betas \(0.9,\) must have 2 numbers"),
    (value, {"model.drop_path": 1.0}, "model.drop_path 1.0 must be at least 0 and less than 1"),
    (value, {"optimizer.betas": (0.9, 1.0)}, r"optimizer.betas \(0.9, 1.0\) must be at least 0 and less than 1"),
    (value, {"views.crops.large.scale": ("a", "b")}, "views.crops.large.scale .* must have 2 numbers"),
    (value, {"views.crops.large.blur_p": (0.1,)}, "blur_p"),
    (value, {"best_metric": "zero_shot/ema/top1"}, "set evaluate_every"),
    (value, {"seed": -1}, "seed -1 must be from 0 to 2147483647"),
    (value, {"model.context_length": 2}, "model.context_length 2 must be from 3 to 65536"),
    (value, {"model.dtype": "float16"}, "unknown model.dtype 'float16'"),
    (value, {"evaluate_every": -1}, "evaluate_every -1 must be from 0 to 2147483647"),
    (value, {"masking.ratio": 1.5}, "masking.ratio 1.5 must be from 0 to 1"),
    (value, {"data.reducing_gap": 0.5}, r"^data.reducing_gap 0.5 must be 0 \(all pixels are decoded\) or at least 1"),
    (value, {"data.max_bad_ratio": 2.0}, "data.max_bad_ratio 2.0 must be from 0 to 1"),
    (
        value,
        {"views.crops.large.scale": (1.0, 0.5)},
        r"scale \(1.0, 0.5\) must be in ascending order: write \(0.5, 1.0\)",
    ),
    (value, {"views.crops.large.scale": (0.0, 1.0)}, r"views.crops.large.scale \(0.0, 1.0\) must be greater than 0"),
    (value, {"views.crops.large.blur_p": (0.1, 1.1)}, r"blur_p \(0.1, 1.1\) must be from 0 to 1"),
    (value, {"optimizer.learning_rate": 0.0}, "optimizer.learning_rate 0.0 must be greater than 0"),
    (value, {"losses.patch_temperature": (0.04, 0.0)}, "patch_temperature .* must be greater than 0"),
    (value, {"losses.clip_block": -5}, "losses.clip_block -5 must be from 0 to 2147483647"),
    (value, {"evaluators": {"zero_shot": {"scenes": 3}}}, "unknown option of evaluator zero_shot: 'scenes'"),
    (value, {"views.crops.large.blur_p": ("high",)}, r"blur_p \('high',\) must have only numbers"),
    (value, {"views.crops.large.blur_sigma": (0.0, 2.0)}, r"blur_sigma \(0.0, 2.0\) must be greater than 0"),
    (value, {"data.text_buckets": ("off",)}, r"data.text_buckets \('off',\) must have whole numbers, for example"),
    (value, {"data.text_buckets": (32.5,)}, r"data.text_buckets \(32.5,\) must have whole numbers"),
    (value, {"model.context_length": 10**8}, "model.context_length 100000000 must be from 3 to 65536"),
    (value, {"data.prefetch": 10**9}, "data.prefetch 1000000000 must be from 0 to 1000"),
    (value, {"data.stickers.num_scenes": 0}, "data.stickers.num_scenes 0 must be at least 1"),
    (value, {"data.stickers.seed": -1}, "data.stickers.seed -1 must be from 0 to 2147483647"),
    (value, {"optimizer.frozen_prototype_epochs": -1.0}, "optimizer.frozen_prototype_epochs -1.0 must be at least 0"),
    (value, {"optimizer.warmup_steps": -10}, "optimizer.warmup_steps -10 must be from 0 to 2147483647"),
    (value, {"optimizer.layer_decay": 0.0}, "optimizer.layer_decay 0.0 must be greater than 0"),
    (value, {"losses.label_smoothing": 0.1}, "label_smoothing 0.1 .* method detailclip has no term that reads them"),
    (value, {"views.patch_dropout": 0.5, "views.patch_dropout_until": 0.0}, "dropout_until 0.0 must be greater than 0"),
    (value, {"views.teacher": "enclosing", **MAE}, "views.teacher 'enclosing': .* mae .* --config.views.teacher=same"),
    (value, {"optimizer.loaded_rate": -0.1}, "optimizer.loaded_rate -0.1 must be at least 0"),
    (value, {"optimizer.weight_decay_end": -0.4}, "optimizer.weight_decay_end -0.4 must be at least 0"),
    (value, {"optimizer.part_rates": {"imge": 0.1}}, "network in optimizer.part_rates 'imge'; did you mean 'image'"),
    (value, {"optimizer.part_rates": {"image": -0.1}}, "part_rates.image -0.1 must be a number of at least 0"),
    (value, {"optimizer.part_rates": {"image": True}}, "part_rates.image True must be a number"),
    (value, {"losses.pixel_eps": -1.0}, "losses.pixel_eps -1.0 must be at least 0"),
    (value, {"views.crops.large.jitter": (-0.4, 0.4, 0.2, 0.1)}, r"large.jitter \(-0.4, .* must be at least 0"),
    (value, {"evaluators": {"zero_shoot": {}}}, "unknown evaluator 'zero_shoot'; did you mean 'zero_shot'"),
    (crop, {"local.scale": (0.3,)}, r"views.crops.local.scale \(0.3,\) must have 2 numbers, for example \(0.5, 1.0\)"),
    (crop, {"local.scale": ("big",)}, r"views.crops.local.scale \('big',\) must have 2 numbers"),
    (crop, {"local.ratio": (1.0,)}, r"views.crops.local.ratio \(1.0,\) must have 2 numbers"),
    (crop, {"local.jitter": (0.4,)}, r"views.crops.local.jitter \(0.4,\) must have 4 numbers"),
    (crop, {"large.mask_ratio": (0.3,)}, r"views.crops.large.mask_ratio \(0.3,\) must have 2 numbers"),
    (crop, {"large.mask_grid": -1}, "views.crops.large.mask_grid -1 must be from 0 to 2147483647"),
    (
        length,
        ({"total_steps": 7}, ["total_steps", "num_epochs"], 2**24),
        "both set the length of the run; give only one",
    ),
    (length, ({"data.source": "stickers"}, [], 2**24), r"total_steps is not set.*--config.total_steps=N"),
    (length, ({}, [], 10), "10 examples, fewer than batch_size 4096; give a smaller"),
]


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: f"{mistake[0].__name__} {mistake[1]}"[:60])
def test_a_mistake_is_named(tmp_path, monkeypatch, mistake):
    monkeypatch.chdir(ROOT)
    call, given, words, *error = mistake
    with pytest.raises(*error or [ValueError], match=words):
        call(given, tmp_path)
