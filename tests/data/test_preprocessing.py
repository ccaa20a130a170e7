"""The group `preprocess`: from imports, through every reader, to every export."""

import io
import json

import numpy as np
import pytest
import tiny
from PIL import Image

from detailclip_jax import evaluation
from detailclip_jax.config import CLIP_MEAN, IMAGENET_MEAN, IMAGENET_STD, default, run_config
from detailclip_jax.data import image_files, preprocessing
from detailclip_jax.data.decoding import ORIENTATION
from detailclip_jax.data.image_files import ImageFileBatches
from detailclip_jax.data.image_operations import evaluation_mask, evaluation_view
from detailclip_jax.data.preprocessing import Transform, transform_of
from detailclip_jax.data.resizing import FILTERS
from detailclip_jax.evaluation import sticker_scenes, tasks
from detailclip_jax.evaluation.image_batches import ImageBatches
from detailclip_jax.inference.model import pixels
from detailclip_jax.interop import hub_configs
from detailclip_jax.interop.layouts import LAYOUTS
from detailclip_jax.interop.state_dicts import preprocess_of
from detailclip_jax.runtime import parser as flags

PILLOWS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


def config_with(size=224, **fields):
    config = preprocessing.changed(default(), fields)
    config.model.image_size = size
    return config


def make_image(height=70, width=99):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def test_the_default_is_the_paper_s_protocol():
    config = default()
    assert transform_of(config) == Transform(224, 224, "bilinear", "shorter_side", "upright")
    assert (config.preprocess.mean, config.preprocess.std) == (IMAGENET_MEAN, IMAGENET_STD)
    assert "mean" not in config.views and "std" not in config.views  # one source of truth
    said = "shorter side to 224 px (bilinear), center crop 224 px, mean 0.485 0.456 0.406, std 0.229 0.224 0.225"
    assert preprocessing.description(config) == said
    assert preprocessing.description(config_with(resize="squash")).startswith("both sides to 224 px (bilinear)")


@pytest.mark.parametrize(("size", "ratio", "side"), [(224, 0.875, 256), (224, 0.9, 248), (224, 224 / 246, 246)])
def test_the_resized_side_is_timm_s(size, ratio, side):
    assert transform_of(config_with(size, crop_ratio=ratio)).shorter_side == side


@pytest.mark.parametrize("filter", list(FILTERS))
def test_squash_resizes_both_sides(filter):
    image, mask = make_image(), np.arange(70 * 99, dtype=np.int32).reshape(70, 99)
    expected = np.asarray(Image.fromarray(image).resize((32, 32), PILLOWS[filter]))
    np.testing.assert_array_equal(Transform(32, 32, filter, "squash").view(image), expected)
    resized = np.asarray(Image.fromarray(image).resize((40, 40), PILLOWS[filter]))[4:36, 4:36]
    np.testing.assert_array_equal(Transform(32, 40, filter, "squash").view(image), resized)
    nearest = np.asarray(Image.fromarray(mask).resize((32, 32), Image.Resampling.NEAREST))
    np.testing.assert_array_equal(evaluation_mask(mask, 32, 32, "squash"), nearest)


@pytest.mark.parametrize(("resize", "unused"), [("native", {"crop_ratio": 0.9}), ("squash", {"max_patches": 9})])
def test_a_field_without_effect_is_refused(resize, unused):
    (name,) = unused
    with pytest.raises(ValueError, match=f"preprocess.{name} .* no effect with preprocess.resize '{resize}'"):
        preprocessing.check_used(config_with(resize=resize).preprocess, unused)


def test_a_workdir_goes_on_with_another_evaluation_and_not_with_another_mean():
    usual = config_with()
    assert not run_config.differences(usual, config_with(filter="bicubic", crop_ratio=0.875))
    assert list(run_config.differences(usual, config_with(mean=(0.5, 0.5, 0.5)))) == ["preprocess.mean"]


# what imports write


def test_families_have_their_own_evaluation():
    found = {}
    for layout in LAYOUTS:
        made = preprocess_of(layout, {})
        found.setdefault(layout.name, set()).add((made["filter"], made["crop_ratio"], made["mean"]))
    for name in ("reference", "aclip", "slip", "clip"):
        assert found[name] == {("bilinear", 1.0, IMAGENET_MEAN)}
    for name in ("mae", "dino", "ibot"):
        assert found[name] == {("bicubic", 0.875, IMAGENET_MEAN)}
    assert found["openai"] == {("bicubic", 1.0, CLIP_MEAN)}
    siglip, pe, tips = (
        ("bicubic", 1.0, (0.5, 0.5, 0.5)),
        ("bilinear", 1.0, (0.5, 0.5, 0.5)),
        ("bilinear", 1.0, (0.0,) * 3),
    )
    assert found["open_clip"] == {("bicubic", 1.0, CLIP_MEAN), siglip, pe}
    ours_and_clip = {("bicubic", 1.0, CLIP_MEAN), ("bilinear", 1.0, IMAGENET_MEAN)}
    assert found["huggingface"] == ours_and_clip | {siglip, tips}
    assert found["timm"] == {
        ("bicubic", 0.9, CLIP_MEAN),
        ("bicubic", 0.9, IMAGENET_MEAN),
        ("bicubic", 1, IMAGENET_MEAN),
        siglip,
        pe,
    }


def read_back(options):
    """The geometry that an import makes of what a config file says."""
    layout = next(row for row in LAYOUTS if row.name == "slip")  # whose own is the default
    told = {name: value for name, value in options.items() if value is not None}
    return transform_of(preprocessing.changed(default(), preprocess_of(layout, told)))


CLIP_PROCESSOR = {"resample": 3, "size": {"shortest_edge": 224}, "crop_size": {"height": 224, "width": 224}}
PROCESSORS = [
    (CLIP_PROCESSOR, Transform(224, 224, "bicubic", "shorter_side", "upright")),
    (
        {**CLIP_PROCESSOR, "size": 256, "crop_size": 224, "resample": 2},
        Transform(224, 256, "bilinear", "shorter_side", "upright"),
    ),
    (
        {**CLIP_PROCESSOR, "size": {"shortest_edge": 256}, "do_center_crop": False},
        Transform(224, 224, "bicubic", "shorter_side", "upright"),
    ),
    ({"resample": 2, "size": {"height": 224, "width": 224}}, Transform(224, 224, "bilinear", "squash", "upright")),
    (
        {"resample": 2, "size": 224, "feature_extractor_type": "ViTFeatureExtractor"},
        Transform(224, 224, "bilinear", "squash", "upright"),
    ),
    ({"image_mean": [0.5] * 3}, Transform(224, 224, "bilinear", "shorter_side", "upright")),
]


@pytest.mark.parametrize(("processor", "expected"), PROCESSORS)
def test_hugging_face_s_image_processors(processor, expected):
    assert read_back(hub_configs.huggingface_options({}, processor)) == expected


def test_null_in_an_image_processor_is_the_default_of_the_family():
    stated = {**CLIP_PROCESSOR, "size": {"shortest_edge": 256}}
    null = hub_configs.huggingface_options({}, {**stated, "do_normalize": None, "do_center_crop": None})
    assert null == hub_configs.huggingface_options({}, stated) and null["mean"] is None
    assert hub_configs.huggingface_options({}, {**stated, "do_normalize": False})["mean"] == [0.0] * 3


@pytest.mark.parametrize("name", ["preprocessor_config.json", "processor_config.json"])
def test_the_image_processor_is_found_in_either_file(tmp_path, name):
    content = CLIP_PROCESSOR if name == "preprocessor_config.json" else {"image_processor": CLIP_PROCESSOR}
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / name).write_text(json.dumps(content))
    assert hub_configs.sidecar_options(tmp_path / "model.safetensors")["resize_filter"] == "bicubic"


def test_a_filter_that_no_number_stands_for_is_named():
    for number in (6, -1, "3"):
        with pytest.raises(ValueError, match=rf"'{number}'.* Known: bicubic, bilinear"):
            read_back(hub_configs.huggingface_options({}, {"resample": number}))
    for stated in {"do_resize": False}, {"do_rescale": False}, {"rescale_factor": 1 / 127.5}:
        with pytest.raises(ValueError, match=f"unsupported {next(iter(stated))} of preprocessor_config.json"):
            hub_configs.huggingface_options({}, stated)


def test_one_number_is_that_of_all_channels(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": 0.5, "image_std": 0.25}))
    made = preprocess_of(LAYOUTS[0], hub_configs.sidecar_options(tmp_path / "model.safetensors"))
    assert (made["mean"], made["std"]) == ((0.5,) * 3, (0.25,) * 3)


@pytest.mark.parametrize("mean", ["0.5", ["0.5"] * 3, [None] * 3, {}])
def test_a_text_in_the_place_of_a_number_is_named(tmp_path, mean):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": mean}))
    with pytest.raises(ValueError, match=r"config\.json, .* is invalid: .*mean"):
        hub_configs.sidecar_options(tmp_path / "model.safetensors")


def test_timm_s_pretrained_cfg(tmp_path):
    stated = {"interpolation": "bicubic", "crop_pct": 0.95, "crop_mode": "center", "mean": [0.5] * 3, "std": [0.5] * 3}
    content = {"architecture": "vit_base_patch16_224", "pretrained_cfg": stated, "model_args": {"num_heads": 3}}
    (tmp_path / "config.json").write_text(json.dumps(content))
    options = hub_configs.sidecar_options(tmp_path / "model.safetensors")
    assert options["num_heads"] == 3 and options["mean"] == [0.5] * 3
    assert read_back(options) == Transform(224, 235, "bicubic", "shorter_side", "upright")
    squash = hub_configs.timm_options(content | {"pretrained_cfg": stated | {"crop_mode": "squash"}})
    assert read_back(squash) == Transform(224, 235, "bicubic", "squash", "upright")


def open_clip_says(**fields):
    model = {"vision_cfg": {"width": 64}, "text_cfg": {}}
    return hub_configs.open_clip_options({"model_cfg": model, "preprocess_cfg": fields})


def test_open_clip_s_preprocess_cfg_and_what_overrides_it():
    assert read_back(open_clip_says(interpolation="bicubic", resize_mode="squash")) == Transform(
        224, 224, "bicubic", "squash"
    )
    padded = open_clip_says(interpolation="bicubic", resize_mode="longest")
    with pytest.raises(ValueError, match=r"'longest'.* Known: shorter_side, squash"):
        read_back(padded)
    assert read_back(padded | {"resize": "shorter_side"}).resize == "shorter_side"
    assert padded["text_heads"] == 8  # open_clip's default, whatever the width


# what exports write


@pytest.mark.parametrize("fields", [{}, {"filter": "bicubic", "crop_ratio": 0.875}, {"resize": "squash"}])
def test_written_configs_say_what_the_record_says(tmp_path, fields):
    config = config_with(**fields, mean=(0.1, 0.2, 0.3))
    again = read_back(hub_configs.huggingface_options({}, hub_configs.preprocessor_config(config)))
    assert again == transform_of(config)
    assert hub_configs.preprocessor_config(config)["image_mean"] == [0.1, 0.2, 0.3]
    stated = {"pretrained_cfg": hub_configs.timm_preprocess(config)}
    assert read_back(hub_configs.timm_options(stated)) == transform_of(config)
    if config.preprocess.crop_ratio == 1:
        written = hub_configs.open_clip_config(config, tmp_path)["preprocess_cfg"]
        assert read_back(open_clip_says(**written)) == transform_of(config)
    else:
        with pytest.raises(
            ValueError, match=r"open_clip needs a crop of the full resized square; .* 0\.875 .*--crop-ratio=1"
        ):
            hub_configs.open_clip_config(config, tmp_path)


# who reads it


def test_evaluation_during_a_run_follows_it():
    config = tiny.tiny_config()
    config.preprocess.filter, config.preprocess.crop_ratio = "bicubic", 0.875
    scenes = sticker_scenes.scenes(config, "held_out_scenes", 2)
    expected = [evaluation_view(scenes[i]["image"], 32, 36, "bicubic") for i in range(2)]
    (batch,) = sticker_scenes.batches(scenes, config)
    np.testing.assert_array_equal(batch["image"], expected)
    np.testing.assert_array_equal(sticker_scenes.images([scenes[0], scenes[1]], config), expected)
    assert batch["segmentation"].shape == (2, 32, 32)
    whole = [evaluation_mask(scenes[i]["segmentation"], 32, 36) for i in range(2)]
    np.testing.assert_array_equal(batch["segmentation"], whole)


def test_a_task_of_a_run_follows_it(monkeypatch):
    config, seen = tiny.tiny_config(), []
    config.preprocess.filter = "bicubic"
    config.evaluators = {"zero_shot:stickers": {}}
    kind = tasks.KINDS["zero_shot"]
    build = lambda setting, name: seen.append(setting.transform) or kind.build(setting, name)
    monkeypatch.setitem(tasks.KINDS, "zero_shot", kind._replace(build=build))
    evaluation.build_all(None, config)
    assert seen == [Transform(32, 32, "bicubic", "shorter_side", "upright")]


def of_all_modes():
    """Name -> an encoded image of a mode or orientation of which open_clip sees other pixels than we do by default."""
    image = make_image(40, 60)
    alpha = np.concatenate([image, image[:, ::-1, :1]], -1)
    turned = Image.Exif()
    turned[ORIENTATION] = 6
    palette = Image.fromarray(image).quantize(16)
    return {
        "RGBA": encoded(Image.fromarray(alpha), "PNG"),
        "LA": encoded(Image.fromarray(alpha[..., [0, 3]], "LA"), "PNG"),
        "palette": encoded(palette, "PNG", transparency=3),
        "16 bits": encoded(Image.fromarray(image[..., 0].astype(np.uint16) * 7), "PNG"),
        "JPEG, turned": encoded(Image.fromarray(image), "JPEG", exif=turned),
        "PNG, turned": encoded(Image.fromarray(image), "PNG", exif=turned),
    }


def encoded(image, format, **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


@pytest.mark.parametrize("mode", of_all_modes())
def test_decoding_by_pillow_gives_open_clip_s_pixels(mode, tmp_path):
    """As its data loaders convert; through a model, the files of a folder, and the batches of an evaluation."""
    open_clip = pytest.importorskip("open_clip")
    data = of_all_modes()[mode]
    (tmp_path / "image.png").write_bytes(data)
    transform = open_clip.transform.image_transform(32, is_train=False, mean=(0, 0, 0), std=(1, 1, 1))
    expected = (transform(Image.open(io.BytesIO(data)).convert("RGB")).movedim(0, -1).numpy() * 255).round()
    for asked in ("pillow", "upright"):
        ours = transform_of(config_with(32, filter="bicubic", decoding=asked))
        source = [{"image": data, "captions": (), "key": "0", "label": 0}]
        found = [
            ours.view(pixels(data, asked)),
            ours.view(pixels(Image.open(io.BytesIO(data)), asked)),
            ImageFileBatches(image_files.find(str(tmp_path)), ours, 1)[0]["image"][0],
            ImageBatches(source, ours, (1,))[0]["batch"]["image"][0],
        ]
        assert all((image == found[0]).all() for image in found)
        assert (np.abs(found[0] - expected).max() <= 1) == (asked == "pillow")


def test_a_decoding_is_said_and_imported():
    assert preprocessing.description(config_with(decoding="pillow")).startswith("decoded by Pillow's convert('RGB'), ")
    clip = next(layout for layout in LAYOUTS if layout.name == "openai")
    assert preprocess_of(clip, {"decoding": "pillow"})["decoding"] == "pillow"


def test_flags_override():
    parser = flags.parser("evaluate", "")
    flags.add_preprocessing(parser)
    given = flags.preprocessing_of(
        parser.parse_args(["--resize-filter=bicubic", "--crop-ratio=.875", "--decoding=pillow"])
    )
    config = preprocessing.changed(default(), given)
    assert transform_of(config) == Transform(224, 256, "bicubic", "shorter_side", "pillow")
    unchanged = preprocessing.changed(config, flags.preprocessing_of(parser.parse_args([])))
    assert transform_of(unchanged) == transform_of(config)
