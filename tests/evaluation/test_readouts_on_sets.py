"""Dense read-outs on segmentation sets: decisions from the definition, published setups, sets on disk, the command."""

import functools
import io
import json

import numpy as np
import pytest
from evaluation_data import make_image, write_checkpoint
from ml_collections import ConfigDict
from PIL import Image
from tiny import check_names

import detailclip_jax
from detailclip_jax import evaluate as command
from detailclip_jax.data.sources import BadRecord, MissingData
from detailclip_jax.data.stickers.scene_source import zero_shot_prompts
from detailclip_jax.dense import set_examples
from detailclip_jax.dense.segmentation import segmentation_sets
from detailclip_jax.dense.segmentation.index_masks import IGNORE
from detailclip_jax.evaluation import (
    Sets,
    paper_numbers,
    readout_scores,
    readout_sets,
    readout_setups,
    tasks,
)
from detailclip_jax.evaluation.readout_comparison import best
from detailclip_jax.evaluation.readout_sets import open_readout_set, spelled_out, split_name
from detailclip_jax.evaluation.readout_setups import setup
from detailclip_jax.inference.readout_choice import Choice
from detailclip_jax.inference.readout_maps import PIPELINES, Pipeline, layout, resized
from detailclip_jax.models.readouts import READOUTS
from detailclip_jax.runtime.errors import Unmeasurable

CLASSES = ("background", "frog", "red bus", "grass")
MODEL = ConfigDict({"image_size": 224, "size": "B/16", "image_is_embedding": False, "image_style": {}})


def decision(threshold=0.0, smallest_share=0.0, scale=5.0):
    return readout_setups.Setup(Pipeline(scale=scale), (), (), threshold, smallest_share)


# from maps to classes


def by_pixel(maps, class_of, num_classes, found):
    """One pixel at a time: softmax over names, best name of each class, dropped classes, threshold."""
    shares = np.zeros((num_classes, *maps.shape[1:]))
    for y, x in np.ndindex(*maps.shape[1:]):
        each = np.exp(found.pipeline.scale * maps[:, y, x].astype(float))
        for name, share in enumerate(each / each.sum()):
            shares[class_of[name], y, x] = max(shares[class_of[name], y, x], share)
    first = shares.argmax(0)
    foreground = (first > 0).sum()
    for number in range(1, num_classes):
        if found.smallest_share and (first == number).sum() <= found.smallest_share * foreground:
            shares[number] = 0
    made = shares.argmax(0)
    made[shares.max(0) < found.threshold] = 0
    return made


@pytest.mark.parametrize("found", [decision(), decision(0.35), decision(0.2, 0.15), decision(0, 0.3)])
def test_the_class_of_a_pixel_from_the_definition(found):
    rng = np.random.default_rng(0)
    maps, class_of = rng.uniform(-0.3, 0.3, (6, 9, 11)).astype(np.float32), np.array([0, 0, 1, 2, 2, 4])
    maps[4, :4] += 0.3
    made = readout_scores.predict_classes(maps, class_of, 5, found)
    np.testing.assert_array_equal(made, by_pixel(maps, class_of, 5, found))
    assert 3 not in made  # a class without names
    assert len(np.unique(made)) > 1


def test_a_background_without_names_is_what_is_below_the_threshold():
    maps = np.array([[[0.9, 0.5, 0.2]], [[0.1, 0.5, 0.7]]], np.float32)
    np.testing.assert_array_equal(readout_scores.predict_classes(maps, np.array([1, 2]), 3, decision(0.8)), [[1, 0, 2]])


def test_metrics_by_hand():
    """Two images; class 2 occurs in no image, class 1 is right in half of its pixels."""
    truth = [np.array([[0, 0, 1, IGNORE]]), np.array([[1, 1, 1, 0]])]
    found = [np.array([[0, 0, 1, 2]]), np.array([[0, 1, 0, 0]])]
    counts = np.stack([readout_scores.count_pixels(readout_scores.confusion(t, p, 3)) for t, p in zip(truth, found)])
    values = dict(readout_scores.metrics(counts))
    assert values["mean_iou"] == pytest.approx((3 / 5 + 2 / 4) / 2)
    assert values["mean_accuracy"] == pytest.approx((3 / 3 + 2 / 4) / 2)
    assert values["pixel_accuracy"] == pytest.approx(5 / 7)
    assert all(value.low <= value <= value.high and value.n == 2 for value in values.values())
    with pytest.raises(Unmeasurable, match="no pixel"):
        dict(readout_scores.metrics(np.zeros((2, 3, 4), int)))


def test_miou_is_scikit_learn_s():
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    truth, found = rng.integers(-1, 4, (6, 9, 7)), rng.integers(0, 4, (6, 9, 7))
    values = dict(
        readout_scores.metrics(
            np.stack([readout_scores.count_pixels(readout_scores.confusion(t, p, 5)) for t, p in zip(truth, found)])
        )
    )
    y, z = truth[truth >= 0], found[truth >= 0]
    assert values["mean_iou"] == pytest.approx(metrics.jaccard_score(y, z, average="macro"))
    assert values["mean_accuracy"] == pytest.approx(metrics.balanced_accuracy_score(y, z))
    assert values["pixel_accuracy"] == pytest.approx(metrics.accuracy_score(y, z))


def test_windows_of_one_shape_share_a_batch():
    shapes = [(8, 8)] * 5 + [(8, 16)] * 2 + [(8, 8)]
    batches = list(readout_scores.of_one_shape([np.zeros((*shape, 3)) for shape in shapes], 4))
    assert [(len(batch), batch[0].shape[:2]) for batch in batches] == [
        (4, (8, 8)),
        (1, (8, 8)),
        (2, (8, 16)),
        (1, (8, 8)),
    ]
    assert list(readout_scores.of_one_shape([], 4)) == []


def test_images_get_the_features_of_their_own_windows():
    """Images of one, five and nothing but other shapes, in batches that end within an image."""
    cuts = [
        readout_scores.Cut(None, [np.full((side, 8, 3), 10 * number + w, np.uint8) for w in range(count)], number)
        for number, (count, side) in enumerate([(1, 8), (70, 8), (2, 16), (3, 8)])
    ]
    encode = lambda windows: windows[:, :1, :1, :1]
    made = list(readout_scores.stream_features(encode, iter(cuts)))
    assert [cut.mask for cut, _ in made] == [0, 1, 2, 3]
    for cut, features in made:
        np.testing.assert_array_equal(features[:, 0, 0, 0], [window[0, 0, 0] for window in cut.windows])


# setups


def test_published_name_lists():
    voc = setup("voc21", "sclip", segmentation_sets.VOC).names
    assert (
        [len(own) for own in voc] == [26, *[1] * 14, 7, *[1] * 4, 5] and voc[4] == ("ship",) and voc[11] == ("table",)
    )
    assert voc[0][:3] == ("sky", "wall", "tree") and voc[15][-1] == "person in jacket"
    assert setup("voc20", "naclip", segmentation_sets.VOC[1:]).names == voc[1:]
    single = setup("voc21", "clearclip", segmentation_sets.VOC).names
    renamed = {a: b for a, (b,) in zip(segmentation_sets.VOC, single) if a != b}
    assert renamed == {"boat": "ship", "diningtable": "table"}
    things = setup("coco_object", "plain", ("background", *segmentation_sets.COCO_STUFF[:80])).names
    assert len(things) == 81 and things[1][-1] == "body" and things[10] == ("traffic light",) and len(things[0]) == 26
    ade = setup("ade150", "naclip", segmentation_sets.ADE20K).names
    assert ade[44] == ("chestofdrawers",) and ade[141] == ("crtscreen",) and all(len(own) == 1 for own in ade)
    assert setup("ade150", "tips", segmentation_sets.ADE20K).names[44] == ("chest of drawers",)
    assert setup("voc21", "tips", segmentation_sets.VOC).names[:1] == (("background",),)
    assert setup("cityscapes", "gem", segmentation_sets.CITYSCAPES).names[6] == ("trafficlight",)
    assert setup("voc21", "gem", segmentation_sets.VOC).names[0] == ()  # background has no name
    assert setup("folder:/x", "gem", CLASSES).names[0] == ("background",)


@pytest.mark.parametrize(
    ("dataset", "readout", "short_side", "window", "stride", "scale", "threshold"),
    [
        ("voc21", "sclip", 336, 224, 112, 65, 0.1),
        ("voc20", "sclip", 336, 224, 112, 40, 0),
        ("context60", "maskclip", 336, 224, 112, 50, 0.1),
        ("coco_stuff171", "plain", 448, 224, 112, 40, 0),
        ("cityscapes", "sclip", 560, 224, 112, 40, 0),
        ("voc20", "naclip", 336, None, 112, 40, 0),
        ("coco_object", "naclip", 336, 224, 112, 40, 0.1),
        ("coco_object", "clearclip", 448, 448, 224, 50, 0.4),
        ("cityscapes", "clearclip", 448, 224, 224, 50, 0),
        ("voc21", "gem", 448, None, 112, 100, 0.85),
        ("ade150", "tips", 224, 224, 168, 1, 0),  # 448, 448 and 336 for the published models of 448 px
    ],
)
def test_published_setups(dataset, readout, short_side, window, stride, scale, threshold):
    found = setup(dataset, readout, ["x"])
    cut = found.pipeline
    assert (cut.short_side, cut.window, cut.stride, cut.scale, found.threshold) == (
        *(short_side, window, stride, scale, threshold),
    )
    assert found.smallest_share == (0.1 if (dataset, readout) == ("voc21", "sclip") else 0)
    assert len(found.templates) == {"gem": 1, "tips": 9}.get(readout, 80) and cut.window_softmax == (readout == "tips")
    assert cut.pad == (readout == "clearclip")
    said = found.description(MODEL)
    assert f" {short_side}, " in said and ("whole image" if window is None else f"windows {window}/{stride}") in said


@pytest.mark.parametrize(
    ("shape", "size"),
    [((683, 512), (597, 448)), ((512, 683), (448, 597)), ((300, 300), (448, 448)), ((9, 900), (40, 4096))],
)
def test_tips_rounds_the_longer_side_down(shape, size):
    """683 / 512 * 448 = 597.6; the longer side is at most 4096 for a model of 448 px."""
    assert resized(shape, PIPELINES["tips"], 2.0) == size


@pytest.mark.parametrize("readout", ["sclip", "tips"])
def test_an_evaluation_takes_the_softmax_where_the_published_code_does(readout):
    """Two windows that overlap: the mean of their softmaxes is another one than the softmax of their mean."""
    model = ConfigDict({"image_size": 64, "size": "tiny", "image_is_embedding": False})
    found = setup("ade150", readout, segmentation_sets.ADE20K[:3])
    cut = layout((64, 96), found.pipeline, model)
    features = np.random.default_rng(0).normal(size=(len(cut.windows(np.zeros((64, 96, 3), np.uint8))), 8, 8, 4))
    maps = readout_scores.maps_of(cut, features.astype(np.float32), np.eye(3, 4, dtype=np.float32), found)
    assert np.allclose(maps.sum(0), 1, atol=1e-5) == (readout == "tips")


@pytest.mark.parametrize("size", [61, 64, 224, 448, 488, 976])
def test_tips_keeps_every_pixel_of_the_shorter_side(size):
    for shape in ((650, 487), (333, 1000), (97, 97)):
        assert min(resized(shape, PIPELINES["tips"], size / 224)) == size


def test_the_description_of_a_setup_has_the_lengths_of_the_model():
    small = ConfigDict({"image_size": 64, "size": "tiny", "image_is_embedding": False, "image_style": {}})
    said = setup("voc21", "sclip", ["x"]).description(small)
    assert said.startswith("short side 96, windows 64/32, scale 65, threshold 0.1")
    assert setup("voc21", "gem", ["x"]).description(small).startswith("squashed to 128, whole image, scale 100")
    said = setup("ade150", "tips", ["x"]).description(small)
    assert said == "short side 64, windows 64/48, scale 1, softmax in each window, 1 names, 9 prompts each"
    small.image_style.pooling = "attention"  # results of earlier versions, which left the pool out, count as others
    assert setup("ade150", "tips", ["x"]).description(small) == f"{said}, each patch alone through the attention pool"
    assert layout((96, 96), PIPELINES["sclip"], small).down.places.starts == (0, 32)


def test_published_numbers_are_of_sets_and_read_outs_that_exist():
    rows = paper_numbers.published_results()
    cells = [cell for row in rows.values() for cell in row if cell[0] == "dense"]
    assert len(cells) == 14
    for task, dataset, metric in cells:
        name, readout = split_name(dataset)
        assert (task, metric) == ("dense", "mean_iou") and name in readout_sets.NAMES and readout in READOUTS
    assert rows["SCLIP (arXiv 2312.01597), CLIP B/16"]["dense", "cityscapes:sclip", "mean_iou"] == pytest.approx(0.323)


# names


def test_names_of_sets_and_read_outs():
    assert split_name("voc20") == ("voc20", None) and split_name("ade150:gem") == ("ade150", "gem")
    assert split_name("folder:/a:b") == ("folder:/a:b", None) and split_name("folder:/a:gem") == (
        "folder:/a",
        "gem",
    )
    assert split_name("folder:gem") == ("folder:gem", None)
    assert spelled_out("voc20:all") == [f"voc20:{readout}" for readout in READOUTS]
    assert spelled_out("folder:/a:b:all") == [f"folder:/a:b:{readout}" for readout in READOUTS]
    assert spelled_out("folder:all") == ["folder:all"] and spelled_out("folder:/a:gem") == ["folder:/a:gem"]
    assert spelled_out("all:sclip") == [f"{name}:sclip" for name in readout_sets.NAMES]
    asked = tasks.parse("dense:stickers,voc21:gem;zero_shot:stickers", Sets())
    assert list(map(str, asked)) == ["dense:stickers", "dense:voc21:gem", "zero_shot:stickers"]
    named = tasks.with_readouts([*asked, tasks.Task("dense", "stickers:gem")], ("plain", "gem"))
    every = ["dense:stickers:plain", "dense:stickers:gem", "dense:voc21:gem", "zero_shot:stickers"]
    assert list(map(str, named)) == every
    assert tasks.with_readouts(asked, ()) == asked, "a model of another library"
    of_default = tasks.with_readouts(tasks.parse("dense:voc21:default,stickers", Sets()), ("plain",), ("gem",))
    assert list(map(str, of_default)) == ["dense:voc21:gem", "dense:stickers:plain"]


def test_help_names_every_set_and_read_out():
    text = " ".join(command.parser().format_help().split())
    assert ", ".join(READOUTS) in text and ", ".join(readout_sets.NAMES) in text


# sets


def write_pair(image, mask, values):
    image.parent.mkdir(parents=True, exist_ok=True)
    mask.parent.mkdir(parents=True, exist_ok=True)
    values = np.asarray(values, np.uint8)
    image.write_bytes(make_image(np.random.default_rng(len(image.name)), values.shape))
    Image.fromarray(values).save(mask)


def test_labels_of_the_sets_on_disk(tmp_path):
    voc, coco, context = tmp_path / "VOCdevkit/VOC2012", tmp_path / "coco", tmp_path / "VOCdevkit/VOC2010"
    write_pair(voc / "JPEGImages/a.jpg", voc / "SegmentationClass/a.png", [[0, 1, 20, 255]])
    write_pair(context / "JPEGImages/a.jpg", context / "SegmentationClassContext/a.png", [[0, 1, 59, 2]])
    write_pair(coco / "images/val2017/a.jpg", coco / "annotations/val2017/a.png", [[0, 89, 91, 255]])
    for folder, part in ((voc, "Segmentation"), (context, "SegmentationContext")):
        (folder / "ImageSets" / part).mkdir(parents=True)
        (folder / "ImageSets" / part / "val.txt").write_text("a\n")
    expected = {
        "voc21": ([0, 1, 20, IGNORE], "background"),
        "voc20": ([IGNORE, 0, 19, IGNORE], "aeroplane"),
        "context59": ([IGNORE, 0, 58, 1], "aeroplane"),
        "context60": ([0, 1, 59, 2], "background"),
        "coco_stuff171": ([0, 79, 80, IGNORE], "person"),
        "coco_object": ([1, 80, 0, 0], "background"),
    }
    sets, marks = Sets(tmp_path), set()
    for name, (labels, first) in expected.items():
        data = open_readout_set(name, sets)
        np.testing.assert_array_equal(data.source[0]["mask"], [labels], err_msg=name)
        assert data.classes[0] == first and len(data.classes) == int("".join(filter(str.isdigit, name)) or 81)
        marks.add(data.fingerprint)
    assert len(marks) == len(expected)
    with pytest.raises(MissingData, match=r"ade150 is not in .*ade20k, .*ADEChallengeData2016"):
        open_readout_set("ade150", sets)


def test_stickers_are_scenes_of_nouns_without_background():
    data = open_readout_set("stickers", Sets(image_size=32, num_examples=3))
    assert len(data.source) == 3 and len(data.classes) == len(zero_shot_prompts()) and data.expected is None
    scene = data.source[0]
    assert set(np.unique(scene["mask"])) == {IGNORE, *scene["nouns"].tolist()}
    class_of, prompts = readout_scores.queries(data, setup("stickers", "naclip", data.classes))
    assert prompts == zero_shot_prompts() and class_of.tolist() == list(range(len(data.classes)))


# the command


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("run") / "tiny", "clip")


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    """Five images of several shapes with random masks."""
    folder, rng = tmp_path_factory.mktemp("mine"), np.random.default_rng(0)
    for number, shape in enumerate([(40, 48), (48, 40), (33, 70), (60, 31), (40, 40)]):
        values = rng.integers(0, 5, (4, 4)).repeat(20, 0).repeat(20, 1)[: shape[0], : shape[1]]
        values = np.where(values == 4, 255, values)[: shape[0], : shape[1]]
        write_pair(folder / f"images/val/{number}.png", folder / f"masks/val/{number}.png", values)
    (folder / "classes.txt").write_text("\n".join(CLASSES))
    return folder


def run(workdir, out, *arguments):
    return command.main([f"--checkpoint={workdir}", f"--out={out}", "--batch-size=8", *arguments])


def records(out):
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


@pytest.mark.check
@pytest.mark.parametrize("readout", ["naclip", pytest.param("gem", marks=pytest.mark.slow)])
def test_a_folder_gives_what_a_loop_over_model_dense_gives(workdir, mine, tmp_path, readout):
    assert run(workdir, tmp_path, f"--tasks=dense:folder:{mine}:{readout}") == 0
    found = {r["metric"]: r for r in records(tmp_path)}
    model, right, true, predicted = detailclip_jax.load(workdir), 0, 0, 0
    templates = setup("folder:x", readout, CLASSES).templates
    for file in sorted((mine / "images/val").iterdir()):
        truth = np.asarray(Image.open(mine / "masks/val" / file.name))
        best = model.dense(file, CLASSES, readout, templates).argmax(0)[truth != 255]
        one_hot = np.arange(4)[:, None]
        right = right + ((best == truth[truth != 255]) & (best == one_hot)).sum(1)
        true, predicted = true + (truth[truth != 255] == one_hot).sum(1), predicted + (best == one_hot).sum(1)
    # windows of one image or of several in a batch round differently: a few pixels may change
    assert found["mean_iou"]["value"] == pytest.approx((right / (true + predicted - right)).mean(), abs=2e-3)
    assert found["mean_accuracy"]["value"] == pytest.approx((right / true).mean(), abs=2e-3)
    assert found["pixel_accuracy"]["value"] == pytest.approx(right.sum() / true.sum(), abs=2e-3)
    assert found["mean_iou"]["dataset"] == f"folder:{mine}:{readout}" and found["mean_iou"]["n"] == 5


@pytest.mark.check
def test_stickers_and_the_published_numbers(workdir, mine, tmp_path, capsys, monkeypatch):
    tasks_ = "--tasks=dense:stickers:sclip,voc21:sclip,ade150"
    monkeypatch.setitem(readout_sets.KINDS, "voc21", readout_sets.Kind("folders", (mine.name,), 5))
    assert run(workdir, tmp_path, tasks_, "--num-examples=4", "--compare=published", f"--data-dir={mine.parent}") == 0
    screen = capsys.readouterr().out
    assert "ade150 is not in" in screen
    (row,) = (line for line in screen.splitlines() if "dense voc21:sclip, mIoU" in line)
    assert "59.6" in row and "paper: SCLIP (arXiv 2312.01597), CLIP B/16" in screen and "NACLIP" not in screen
    scenes = next(r for r in records(tmp_path) if r["dataset"] == "stickers:sclip")
    assert scenes["n"] == 4 and "short side 48, windows 32/16" in scenes["protocol"]
    assert run(workdir, tmp_path, "--tasks=dense:stickers:sclip", "--num-examples=4") == 0
    assert "already measured" in capsys.readouterr().out


def score(dataset, readout, value, weights="student", metric="mean_iou", task="dense"):
    return {"task": task, "dataset": f"{dataset}:{readout}", "weights": weights, "metric": metric, "value": value}


def test_the_best_read_out_is_that_of_the_highest_mean_over_the_sets():
    one = [score("stickers", "plain", 0.2), score("stickers", "gem", 0.1), score("stickers", "gem", 0.9, "ema")]
    assert best(one, "student") == Choice("plain", ("stickers",), {"plain": 0.2, "gem": 0.1}, {})
    assert best(one, "ema") is None, "one read-out alone"
    other = [score("folder:/a:b", "gem", 0.4), score("folder:/a:b", "plain", 0.1), score("voc20", "sclip", 0.9)]
    both = best([*one, *other, score("stickers", "sclip", 0.8), score("stickers", "plain", 1, metric="x")], "student")
    assert both == Choice("gem", ("stickers", "folder:/a:b"), {"gem": 0.25, "plain": pytest.approx(0.15)}, {})
    apart = [score("voc20", "sclip", 0.5), score("ade150", "gem", 0.4)]
    assert best(apart, "student") is None, "on different sets"


def test_a_read_out_that_inverts_most_words_is_chosen_only_if_all_do():
    turned = [score("voc20", "plain", 0.9, metric="inverted"), score("voc20", "gem", 0.4, metric="inverted")]
    scores = [score("voc20", "plain", 0.2), score("voc20", "gem", 0.1)]
    choice = best([*scores, *turned], "student")
    assert choice == Choice("gem", ("voc20",), {"plain": 0.2, "gem": 0.1}, {"plain": 0.9, "gem": 0.4})
    all_turned = [*scores, turned[0], score("voc20", "gem", 0.6, metric="inverted")]
    assert best(all_turned, "student").readout == "plain"


def test_inverted_classes_by_hand():
    """Class 0 is lower on its pixels, class 1 is higher; class 2 covers an image, and class 3 has no name."""
    maps = np.zeros((3, 2, 2), np.float32)
    maps[0, 0], maps[1, 1] = -1.0, 1.0
    class_of = np.arange(3)
    assert readout_scores.inverted_pairs(maps, class_of, np.array([[0, 0], [IGNORE, 1]])) == (1, 2)
    assert readout_scores.inverted_pairs(maps, class_of, np.full((2, 2), 2)) == (0, 0)
    assert readout_scores.inverted_pairs(maps, class_of, np.array([[3, 3], [IGNORE, IGNORE]])) == (0, 0)
    assert readout_scores.inverted_share(np.array([[1, 2], [0, 0], [2, 2]])) == 0.75


@pytest.mark.check
def test_a_set_with_masks_is_measured_by_every_read_out_until_the_best_is_known(mine, tmp_path, capsys):
    workdir, command = write_checkpoint(tmp_path / "run"), (f"--tasks=dense:folder:{mine}", "--weights=student")
    assert run(workdir, tmp_path / "out", *command) == 0
    screen = " ".join(capsys.readouterr().out.split())
    values = {
        r["dataset"].rpartition(":")[2]: r["value"] for r in records(tmp_path / "out") if r["metric"] == "mean_iou"
    }
    assert sorted(values) == sorted(READOUTS)
    assert f"mIoU of the read-outs on folder:{mine}, student weights (per cent of inverted words): " in screen
    chosen = best(records(tmp_path / "out"), "student").readout
    assert f"{chosen} is now the default of this checkpoint (stored in {workdir}/readouts.json)" in screen
    assert detailclip_jax.load(str(workdir), "student").readout == chosen
    assert run(workdir, tmp_path / "again", *command) == 0
    assert {r["dataset"] for r in records(tmp_path / "again")} == {f"folder:{mine}:{chosen}"}
    assert "is now the default" not in capsys.readouterr().out


def test_an_image_that_would_be_reduced_is_refused(mine, monkeypatch):
    """Its map would be smaller than its mask."""
    monkeypatch.setattr(set_examples, "decode_whole", functools.partial(set_examples.decode_whole, max_pixels=1000))
    stream = io.BytesIO()
    Image.new("RGB", (64, 64)).save(stream, "JPEG")
    source = [{"image": stream.getvalue(), "mask": np.zeros((64, 64), np.uint8), "key": "wide.jpg"}]
    cuts = readout_scores.Cuts(source, [0], setup(f"folder:{mine}", "plain", CLASSES), ConfigDict({"image_size": 32}))
    with pytest.raises(BadRecord, match=r"wide\.jpg: too large: 64 x 64 pixels.*cut it into tiles"):
        cuts[0]


@pytest.mark.check
def test_classes_that_no_mask_has_and_ignored_pixels_are_remarks(workdir, mine, tmp_path, capsys):
    """A class stored as 255 is ignored; the sets with a known layout ignore what their task leaves out."""
    folder = tmp_path / "masks"
    write_pair(folder / "images/val/a.png", folder / "masks/val/a.png", [[0] * 30 + [255] * 10] * 40)
    (folder / "classes.txt").write_text("ground\nbox")
    out = tmp_path / "out"
    assert (
        run(
            workdir,
            out,
            f"--tasks=dense:folder:{folder}:naclip,folder:{mine}:naclip,stickers:naclip",
            "--num-examples=2",
        )
        == 0
    )
    screen, page = capsys.readouterr().out, (out / "results.md").read_text()
    for text in (screen, page):
        listed = [line for line in text.splitlines() if "in no mask of the evaluation set" in line]
        assert len(listed) == 1 and str(folder) in listed[0]
        check_names(listed[0], "1 of 2 classes", "(box)", "25.0%", "ignored")
    of = {r["dataset"]: r["remark"] for r in records(out) if r["metric"] == "mean_iou"}
    assert of[f"folder:{mine}:naclip"] == of["stickers:naclip"] == ""


@pytest.mark.check
def test_an_image_encoder_alone_is_left_out_and_a_broken_mask_fails(workdir, mine, tmp_path, capsys):
    alone = write_checkpoint(tmp_path / "mae", "mae")
    assert run(alone, tmp_path / "out", f"--tasks=dense:folder:{mine}:naclip") == 1
    assert "mae has no image_projection, text, text_projection" in capsys.readouterr().out
    broken = tmp_path / "broken"
    write_pair(broken / "images/val/a.png", broken / "masks/val/a.png", [[9] * 40] * 40)
    (broken / "classes.txt").write_text("\n".join(CLASSES))
    assert run(workdir, tmp_path / "other", f"--tasks=dense:folder:{broken}:naclip") == 1
    assert "FAILED" in capsys.readouterr().out


def test_lengths_follow_the_image_size_of_the_model():
    """A model of 64 px cuts a scene as the published code cuts it for 224 px, in proportion."""
    from ml_collections import ConfigDict

    model = ConfigDict({"image_size": 64, "size": "tiny", "image_is_embedding": False})
    found = layout((80, 120, 3), PIPELINES["sclip"], model)
    assert (
        found.size == (96, 144)
        and found.down.places.starts == (0, 32)
        and found.across.places.starts == (0, 32, 64, 80)
    )
    whole = layout((80, 120, 3), PIPELINES["gem"], model)
    assert whole.size == (128, 128) and whole.down.places.starts == (0,) and whole.across.places.seen == 128
    assert layout(
        (4000, 100), PIPELINES["sclip"], ConfigDict({"image_size": 224, "size": "B/16", "image_is_embedding": False})
    ).size == (2048, 51)
