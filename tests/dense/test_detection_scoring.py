"""Scores of detection: pycocotools against a naive AP, results in COCO's format, predictions of images of any size."""

import json

import numpy as np
import pytest
from PIL import Image

from detailclip_jax.dense.detection import coco_scores
from detailclip_jax.dense.detection.coco_sets import open_format
from detailclip_jax.dense.detection.detect import Found, Test, predict
from detailclip_jax.dense.detection.detection_set import DetectionSet
from detailclip_jax.dense.detection.detector import Detections
from detailclip_jax.dense.detection.masks import paste
from detailclip_jax.dense.detection.sticker_instances import open_stickers

masks = pytest.importorskip("pycocotools.mask")
RNG = np.random.default_rng(0)


class Truth:
    """Images of 60 x 80 pixels of one class; the ground truth in COCO's format."""

    def __init__(self, boxes):
        self.boxes = boxes

    def ground_truth(self):
        annotations = [
            {
                "id": 1 + number,
                "image_id": image,
                "category_id": 3,
                "bbox": [x, y, w, h],
                "area": w * h,
                "iscrowd": 0,
                "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
            }
            for number, (image, (x, y, w, h)) in enumerate((i, box) for i, own in self.boxes.items() for box in own)
        ]
        images = [{"id": image, "file_name": f"{image}.jpg", "height": 60, "width": 80} for image in self.boxes]
        return {"images": images, "annotations": annotations, "categories": [{"id": 3, "name": "thing"}]}


def truth(boxes):
    return DetectionSet("own", Truth(boxes), ("thing",), (3,))


def iou(first, second):
    (x, y, w, h), (u, v, p, q) = first, second
    both = max(min(x + w, u + p) - max(x, u), 0) * max(min(y + h, v + q) - max(y, v), 0)
    return both / (w * h + p * q - both)


def naive_ap(boxes, results):
    """COCO's AP of one class: greedy matching by score, precision interpolated at 101 recalls, mean over ten IoUs."""
    total, values = sum(map(len, boxes.values())), []
    for threshold in np.linspace(0.5, 0.95, 10):
        taken, hits = set(), []
        for result in sorted(results, key=lambda one: -one["score"]):
            image = result["image_id"]
            best, at = threshold - 1e-10, None
            for number, box in enumerate(boxes[image]):
                if (image, number) not in taken and iou(result["bbox"], box) >= best:
                    best, at = iou(result["bbox"], box), number
            hits.append(at is not None)
            taken |= {(image, at)} if at is not None else set()
        right = np.cumsum(hits)
        recall, precision = right / total, right / np.arange(1, len(hits) + 1)
        values.append(np.mean([precision[recall >= r - 1e-12].max(initial=0) for r in np.linspace(0, 1, 101)]))
    return 100 * np.mean(values)


def test_the_ap_of_one_class_is_the_naive_one():
    boxes = {
        image: [[*RNG.integers(0, 40, 2).tolist(), *RNG.integers(8, 20, 2).tolist()] for _ in range(3)]
        for image in range(1, 7)
    }
    results = [
        {
            "image_id": image,
            "category_id": 3,
            "score": float(RNG.random()),
            "bbox": (np.array(box) + RNG.normal(0, 1.5, 4)).tolist(),
        }
        for image, own in boxes.items()
        for box in [*own, [50, 30, 12, 12]]
    ]
    for one in results:
        x, y, w, h = (round(v) for v in one["bbox"])
        mask = np.zeros((60, 80), np.uint8)
        mask[max(y, 0) : y + h, max(x, 0) : x + w] = 1
        one["segmentation"] = masks.encode(np.asfortranarray(mask))
    scores, classes = coco_scores.score(truth(boxes), results)
    assert set(scores) == set(coco_scores.METRICS) and len(scores) == 24
    assert scores["bbox_AP"] == pytest.approx(naive_ap(boxes, results), abs=1e-6)
    assert 5 < scores["bbox_AP"] < 95 and classes["thing"]["bbox"] == pytest.approx(scores["bbox_AP"])
    assert scores["bbox_APl"] == -1  # there is no large object
    assert scores["segm_AP50"] > 20


def test_no_detections_score_nothing_and_the_truth_scores_everything():
    found = open_stickers("groups", "val", 48, 8)
    scores, classes = coco_scores.score(found, [])
    assert scores["bbox_AP"] == scores["segm_AP"] == 0
    exact = [
        {**{name: one[name] for name in ("image_id", "category_id", "bbox", "segmentation")}, "score": 1.0}
        for one in found.ground_truth()["annotations"]
    ]
    for one in exact:
        one["segmentation"] = masks.frPyObjects(one["segmentation"], 48, 48)
    scores, classes = coco_scores.score(found, exact)
    assert scores["bbox_AP"] == scores["segm_AP"] == pytest.approx(100)
    assert {round(value, 3) for one in classes.values() for value in one.values()} == {-1.0, 100.0}


def test_results_are_in_coco_s_format_and_survive_json():
    """The pasted mask is the one that pycocotools decodes."""
    found = Found(
        np.array([[3.25, 4.5, 40.5, 30.125]], np.float32),
        np.array([0.75], np.float32),
        np.array([1], np.int32),
        (RNG.random((1, 28, 28)) < 0.7).astype(np.float32),
    )
    one = json.loads(json.dumps(coco_scores.results_of(found, 17, (60, 80), (5, 9))))[0]
    assert one["image_id"] == 17 and one["category_id"] == 9 and one["bbox"] == [3.25, 4.5, 37.25, 25.625]
    np.testing.assert_array_equal(masks.decode(one["segmentation"]), paste(found.masks[0], found.boxes[0], (60, 80)))
    assert set(one) == {"image_id", "category_id", "bbox", "score", "segmentation"}


def test_images_of_any_size_come_back_in_order_in_their_own_pixels():
    """A detector that finds the content: each image is one box."""
    test = Test(40, 64, ((48, 64), (64, 48), (64, 64)), 3)
    seen = []

    def detect(images, size):
        seen.append(images.shape)
        assert len(images) == 3
        boxes = np.zeros((3, 2, 4), np.float32)
        for number, (height, width) in enumerate(size):
            assert not images[number, height:].any() and not images[number, :, width:].any()
            boxes[number, 0] = [0, 0, width, height]
        labels = np.tile(np.array([[4, -1]], np.int32), (3, 1))
        scores = images[:, 0, 0, :1].astype(np.float32).repeat(2, 1)
        return Detections(boxes, scores, labels, np.zeros((3, 2, 28, 28), np.float32))

    sizes = [(RNG.integers(10, 200), RNG.integers(10, 200)) for _ in range(20)]
    images = [np.full((h, w, 3), number, np.uint8) for number, (h, w) in enumerate(sizes)]
    found = list(predict(detect, iter(images), test))
    assert len(set(seen)) <= 3
    for number, (one, (height, width)) in enumerate(zip(found, sizes)):
        np.testing.assert_allclose(one.boxes, [[0, 0, width, height]], rtol=1e-5)
        assert one.scores[0] == number and one.labels.tolist() == [4]
        assert len(one.above(number + 0.5).scores) == 0


def test_an_object_marked_ignore_counts_as_in_pycocotools(tmp_path):
    """pycocotools, the arbiter of COCO's numbers, replaces the mark by `iscrowd`: the object counts as all others."""
    boxes = [[4.0, 5.0, 20.0, 15.0], [30.0, 10.0, 12.0, 12.0], [4.0, 30.0, 20.0, 20.0]]
    own = [
        {"id": n, "image_id": 1, "category_id": 3, "bbox": [x, y, w, h], "area": w * h, "iscrowd": 0}
        | {"segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]]}
        for n, (x, y, w, h) in enumerate(boxes, 1)
    ]
    Image.fromarray(np.zeros((60, 80, 3), np.uint8)).save(tmp_path / "1.png")

    def scores(number, annotations):
        """Of the first `number` objects, found in the order of the last one first."""
        images = [{"id": 1, "file_name": "1.png", "height": 60, "width": 80}]
        made = {"images": images, "annotations": annotations, "categories": [{"id": 3, "name": "thing"}]}
        (tmp_path / "set.json").write_text(json.dumps(made))
        found = open_format(tmp_path / "set.json", tmp_path)
        corners = np.array(boxes, np.float32)[:number]
        corners[:, 2:] += corners[:, :2]
        ranks = np.arange(number, dtype=np.float32) / 4 + 0.1
        detected = Found(corners, ranks, np.zeros(number, np.int32), np.ones((number, 28, 28), np.float32))
        made = coco_scores.score(found, coco_scores.results_of(detected, 1, (60, 80), found.category_ids))[0]
        return {name: value for name, value in made.items() if not name.endswith("AR1")}  # of one detection per image

    marked = [*own[:2], {**own[2], "ignore": 1}]
    assert scores(2, marked) == scores(2, own) and scores(3, marked) == scores(3, own)
    assert scores(3, own)["bbox_AP"] == pytest.approx(100) and scores(2, own)["bbox_AP"] < 70


def test_a_set_without_iscrowd_and_area_is_scored(tmp_path):
    """As many exporters write it; the crowd has no mask, and its detection counts neither for nor against."""
    boxes = [[4.0, 5.0, 20.0, 15.0], [30.0, 10.0, 12.0, 12.0], [4.0, 30.0, 20.0, 20.0]]
    own = [
        {
            **{"image_id": 1, "category_id": 3, "bbox": [x, y, w, h]},
            "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
        }
        for x, y, w, h in boxes[:2]
    ]
    own += [{"image_id": 1, "category_id": 3, "bbox": boxes[2], "iscrowd": 1}]
    images = [{"id": 1, "file_name": "1.png", "height": 60, "width": 80}]
    made = {"images": images, "annotations": own, "categories": [{"id": 3, "name": "thing"}]}
    (tmp_path / "set.json").write_text(json.dumps(made))
    Image.fromarray(np.zeros((60, 80, 3), np.uint8)).save(tmp_path / "1.png")
    found = open_format(tmp_path / "set.json", tmp_path)
    corners = np.array(boxes, np.float32)
    corners[:, 2:] += corners[:, :2]
    detected = Found(
        corners, np.array([0.9, 0.8, 0.7], np.float32), np.zeros(3, np.int32), np.ones((3, 28, 28), np.float32)
    )
    scores, _ = coco_scores.score(found, coco_scores.results_of(detected, 1, (60, 80), found.category_ids))
    assert scores["bbox_AP"] == pytest.approx(100) and scores["segm_AP50"] == pytest.approx(100)
    assert scores["bbox_APs"] == pytest.approx(100) and scores["bbox_APm"] == -1
