"""Sets of boxes in small trees of the published layouts, and features pooled in them against loops."""

import functools
import io
import json

import jax
import numpy as np
import pytest
from evaluation_data import write_checkpoint
from PIL import Image
from tiny import check_names, noise_state, tiny_config

from detailclip_jax.data.labelled import open_boxes
from detailclip_jax.data.preprocessing import Transform
from detailclip_jax.data.resizing import resize
from detailclip_jax.data.sources import MissingData
from detailclip_jax.evaluation import detail_report, from_checkpoint, run_tasks
from detailclip_jax.evaluation.box_class import box_class
from detailclip_jax.evaluation.box_features import check_pooling
from detailclip_jax.evaluation.choice import choice
from detailclip_jax.evaluation.embedder import Embedder
from detailclip_jax.evaluation.evaluation_sets import Sets
from detailclip_jax.evaluation.evaluator import Setting
from detailclip_jax.evaluation.protocols import zero_shot_task
from detailclip_jax.evaluation.tasks import parse
from detailclip_jax.runtime.errors import NotApplicable
from detailclip_jax.training import experiment, mesh

NAMES = ("person", "traffic light", "cat", "dog", "hat", "cup", "kite")
SIDES = [(40, 30), (25, 50)]  # of the images: width and height


def picture(seed, size):
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return pixels, stream.getvalue()


def objects(root, name="coco"):
    """A tree of COCO's or LVIS's annotations: 20 boxes in the first image and 2 in the second; the third has none."""
    rng = np.random.default_rng(3)
    of_lvis = name == "lvis"
    images, annotations = [], []
    for number, size in enumerate([*SIDES, (9, 9)]):
        place = f"{'train' if of_lvis and number else 'val'}2017/{number}.png"
        file = root / "coco" / place
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(picture(number, size)[1])
        named = {"coco_url": f"http://images.cocodataset.org/{place}"} if of_lvis else {"file_name": f"{number}.png"}
        images.append({"id": 10 + number, "width": size[0], "height": size[1], **named})
    for image in [0] * 20 + [1] * 2:
        low = rng.uniform(0, 0.6, 2)
        corner, extent = low * SIDES[image], rng.uniform(0.1, 0.4, 2) * SIDES[image]
        annotations.append(
            {
                "image_id": 10 + image,
                "category_id": 5 + int(rng.integers(7)),
                "bbox": [*corner.tolist(), *extent.tolist()],
                "iscrowd": len(annotations) % 2,
            }
        )
    spelled = [each.replace(" ", "_") if of_lvis else each for each in NAMES]
    categories = [{"id": 5 + label, "name": each} for label, each in enumerate(spelled)]
    stored = {"images": images, "annotations": annotations, "categories": categories}
    file = root / ("lvis/lvis_v1_val.json" if of_lvis else "coco/annotations/instances_val2017.json")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(stored))
    return stored


@pytest.mark.parametrize("name", ["coco", "lvis"])
def test_every_annotation_is_a_box_of_its_image(tmp_path, name):
    stored = objects(tmp_path, name)
    found = open_boxes(name, tmp_path)
    assert len(found.data.source) == 2 and len(found.boxes) == 22 and found.classes[1].replace("_", " ") == NAMES[1]
    for row, annotation in enumerate(stored["annotations"]):
        image = annotation["image_id"] - 10
        assert found.images[row] == image and found.labels[row] == annotation["category_id"] - 5
        x, y, w, h = annotation["bbox"]
        expected = np.array([x, y, x + w, y + h]) / [*SIDES[image], *SIDES[image]]
        np.testing.assert_allclose(found.boxes[row], expected, rtol=1e-5)
        assert found.data.source[image]["image"] == picture(image, SIDES[image])[1]
    some = Sets(tmp_path, num_examples=1).boxes(name)
    assert len(some.data.source) == 1 and len(some.boxes) == 20 and some.data.fingerprint != found.data.fingerprint


@pytest.mark.parametrize("name", ["coco", "lvis"])
def test_a_set_that_is_missing_or_damaged_is_named(tmp_path, name):
    with pytest.raises(MissingData, match="Do this") as missing:
        open_boxes(name, tmp_path)
    check_names(missing.value, name, str(tmp_path), "val2017")
    objects(tmp_path, name)
    file = tmp_path / ("lvis/lvis_v1_val.json" if name == "lvis" else "coco/annotations/instances_val2017.json")
    stored = json.loads(file.read_text())
    stored["images"][0]["width"] = 0
    for content in ('{"images": []}', "[", '{"images": [], "annotations": [], "categories": []}', json.dumps(stored)):
        file.write_text(content)
        with pytest.raises(MissingData, match="annotations of") as damaged:
            open_boxes(name, tmp_path)
        check_names(damaged.value, str(file), "download")


def fg_ovd(root):
    """A tree of FG-OVD: three boxes of the first image in each of four files."""
    boxes, captions = [[0, 0, 20, 15], [10, 5, 30, 25], [1.5, 2.5, 10, 12]], [f"a cup {number}" for number in range(9)]
    stored = {
        "images": [{"id": 3, "file_name": "val2017/0.png", "width": 40, "height": 30}],
        "categories": [{"id": number, "name": caption} for number, caption in enumerate(captions)],
        "annotations": [
            {"image_id": 3, "bbox": box, "category_id": n, "neg_category_ids": [3 + n, 6 + n]}
            for n, box in enumerate(boxes)
        ],
    }
    for name in ("1_attributes", "2_attributes", "3_attributes", "shuffle_negatives"):
        file = root / f"fg_ovd/benchmarks/{name}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(stored))
    return np.array(boxes) + np.array([[0, 0, *box[:2]] for box in boxes])


# features


@functools.cache
def model():
    exp = experiment.build(tiny_config("clip"), mesh.make_mesh(jax.devices()[:1]))
    return exp, noise_state(exp, 0.3).params


def tokens_of(texts):
    """A token for each letter, and the end token."""
    rows = np.zeros((len(texts), 12), np.int32)
    for row, text in zip(rows, texts):
        letters = [1 + ord(letter) % 60 for letter in text[-10:]]
        row[: len(letters)] = letters
        row[len(letters)] = 63
    return rows


def setting(root, transform=Transform(32, 32)):  # noqa: B008
    exp, _ = model()
    return Setting(Embedder(exp.encode, tokens_of, batch_size=2), Sets(root, 32), transform, config=exp.config)


def pooled_in_loops(number, boxes):
    """Features of boxes (shares of the sides) in an image of the trees: the value read-out, squashed, pooled, unit."""
    exp, params = model()
    pixels = resize(picture(number, SIDES[number])[0], 32, 32, "bilinear")
    mean, std = (np.float32(exp.config.preprocess[name]) for name in ("mean", "std"))

    def maps(params, x):
        net = exp.model.bind({"params": params})
        return net.image_projection(net.image(x, values=True).values)

    grid = np.float64(jax.jit(maps)(params, (pixels[None] / np.float32(255) - mean) / std))[0].reshape(4, 4, -1)
    found = []
    for box in boxes:
        x0, y0, x1, y1 = np.float64(box) * 4 - 0.5
        rows, columns = (max(int(np.ceil(length - 1e-4)), 1) for length in (y1 - y0, x1 - x0))
        total = 0.0
        for row, column in np.ndindex(rows, columns):
            y, x = (
                np.clip(y0 + (row + 0.5) * (y1 - y0) / rows, 0, 3),
                np.clip(x0 + (column + 0.5) * (x1 - x0) / columns, 0, 3),
            )
            for r, c in np.ndindex(4, 4):
                total = total + max(0, 1 - abs(y - r)) * max(0, 1 - abs(x - c)) * grid[r, c]
        found.append(total / np.linalg.norm(total))
    return np.array(found)


@pytest.mark.parametrize("name", ["coco", "lvis"])
def test_a_box_has_the_nearest_class_by_its_pooled_features(tmp_path, name):
    objects(tmp_path, name)
    found, given = open_boxes(name, tmp_path), setting(tmp_path)
    _, params = model()
    values = dict(box_class(given, name).run(params))
    prompts = zero_shot_task("clip_benchmark", "boxes", NAMES).prompts
    assert {len(each) for each in prompts} == {80} and prompts[1][0].count("traffic light") == 1
    classes = given.embedder.classes(params, prompts)
    ranks = []
    for image in range(2):
        rows = np.flatnonzero(found.images == image)
        scores = pooled_in_loops(image, found.boxes[rows]) @ classes.T
        own = scores[np.arange(len(rows)), found.labels[rows]]
        ranks += (scores > own[:, None]).sum(1).tolist()
    assert values["top1"].n == 22 and values["top1"] == pytest.approx(np.mean(np.array(ranks) < 1))
    assert values["top5"] == pytest.approx(np.mean(np.array(ranks) < 5)) and values["top5"].chance == pytest.approx(
        5 / 7
    )


def test_a_box_chooses_its_caption_by_its_pooled_features(tmp_path):
    objects(tmp_path)
    corners = fg_ovd(tmp_path)
    _, params = model()
    given = setting(tmp_path)
    values = dict(choice(given, "fg_ovd:roi").run(params))
    features = pooled_in_loops(0, corners / [40, 30, 40, 30])
    right = []
    for n, feature in enumerate(features):
        own, *wrong = given.embedder.texts(params, [f"a cup {number}" for number in (n, 3 + n, 6 + n)]) @ feature
        right.append(own > max(wrong))
    assert values["hard"] == values["trivial"] == values["accuracy"] == pytest.approx(np.mean(right))
    assert values["accuracy"].n == 12
    cut = dict(choice(given, "fg_ovd").run(params))
    assert cut["accuracy"].n == 12 and choice(given, "fg_ovd").protocol != choice(given, "fg_ovd:roi").protocol


def test_tasks_name_the_sets(tmp_path):
    tasks = [str(task) for task in parse("box_class:all;choice:fg_ovd:roi", Sets(tmp_path))]
    assert tasks == ["box_class:coco", "box_class:lvis", "choice:fg_ovd:roi"]
    with pytest.raises(ValueError, match="unknown set of boxes 'coc'; did you mean 'coco'"):
        parse("box_class:coc", Sets(tmp_path))


# models without the value read-out in the joint space


def test_what_a_model_has_no_features_for_is_left_out_with_the_reason_and_no_failure(tmp_path):
    objects(tmp_path)
    fg_ovd(tmp_path)
    subject = from_checkpoint(write_checkpoint(tmp_path / "run", "dinotxt"))
    sets = Sets(tmp_path, subject.transform.size)
    outcome = run_tasks(subject, parse("choice:fg_ovd,fg_ovd:roi;box_class:all", sets), sets)
    assert outcome.exit_code == 0 and {r["dataset"] for r in outcome.records} == {"fg_ovd"}
    assert list(outcome.left_out) == ["choice:fg_ovd:roi", "box_class:coco", "box_class:lvis"]
    page = detail_report.markdown(outcome)
    assert "\n## Boxes\n\nNot measured (box_class:coco, box_class:lvis): boxes are pooled from patches" in page
    assert page.count("dinotxt has blocks over all tokens") == 2 and "| fg_ovd, hard" in page
    assert run_tasks(subject, parse("box_class:coco", sets), sets).exit_code == 1


def test_boxes_of_a_model_with_an_attention_pool_say_which_pool_gave_them(tmp_path):
    objects(tmp_path)
    config = tiny_config("siglip")
    config.model.image_style.pooling, config.model.class_tokens = "attention", 0
    exp = experiment.build(config, mesh.make_mesh(jax.devices()[:1]))
    given = setting(tmp_path)._replace(embedder=Embedder(exp.encode, tokens_of, batch_size=2), config=exp.config)
    values = dict(box_class(given, "coco").run(noise_state(exp, 0.3).params))
    assert values["top1"].n == 22 and values["top1"].remark.startswith("by the pool of whole images; FG-CLIP 2 has")
    assert not dict(box_class(setting(tmp_path), "coco").run(model()[1]))["top1"].remark


def test_the_value_readout_needs_a_projection_of_each_patch():
    check_pooling(tiny_config("siglip"))
    with pytest.raises(NotApplicable, match="dinotxt has blocks over all tokens"):
        check_pooling(tiny_config("dinotxt"))
    with pytest.raises(NotApplicable, match="model of another library"):
        check_pooling(None)
