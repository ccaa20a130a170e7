"""Detection sets: shapes against pycocotools, rules of the json, augmentation, buckets, batches and their resume."""

import io
import json
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from detailclip_jax.data.bad_records import TooManyBadRecords
from detailclip_jax.data.pipeline import BatchOptions, Pipeline
from detailclip_jax.data.sources import BadRecord, MissingData
from detailclip_jax.dense.detection import buckets, coco_sets, instance_shapes
from detailclip_jax.dense.detection.detection_task import examples
from detailclip_jax.dense.detection.instance_augment import Recipe, augment, fit_sizes, geometry
from detailclip_jax.dense.detection.instance_batches import DetectionStream, draws, order
from detailclip_jax.dense.detection.sticker_instances import open_stickers
from detailclip_jax.runtime.provenance import data_fingerprint

RNG = np.random.default_rng(0)
STAR = [[8.0, 1.0, 30.5, 22.0, 2.0, 9.5, 34.0, 7.0, 5.0, 24.0]]  # crosses itself
TWO = [[2.0, 2.0, 12.0, 3.0, 7.0, 14.0], [20.0, 4.0, 33.0, 4.0, 33.0, 21.0, 20.0, 21.0]]


# --- shapes


@pytest.mark.parametrize("polygons", [STAR, TWO, [[-5.0, -5.0, 50.0, -3.0, 10.0, 40.0]]])
def test_a_polygon_covers_the_pixels_of_pycocotools_but_for_its_border(polygons):
    masks = pytest.importorskip("pycocotools.mask")
    theirs = masks.decode(masks.merge(masks.frPyObjects(polygons, 26, 36)))
    shape = instance_shapes.read_shape(polygons, 26, 36)
    ours = np.stack(
        [[instance_shapes.sample(shape, (x, y, x + 1, y + 1), 1)[0, 0] for x in range(36)] for y in range(26)]
    )
    steps = [(down, across) for down in (-1, 0, 1) for across in (-1, 0, 1)]
    border = np.any([theirs != np.roll(theirs, step, (0, 1)) for step in steps], 0)
    assert (ours != theirs)[border == 0].sum() == 0
    assert (ours != theirs).mean() < 0.04


def test_a_polygon_is_sampled_at_the_centres_of_its_box():
    """Against the even-odd rule, point by point."""
    points, box, side = np.array(STAR[0]).reshape(-1, 2), (4.0, 2.0, 33.0, 21.0), 13

    def inside(x, y):
        odd = False
        for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, 0)):
            if (y0 <= y) != (y1 <= y) and x >= x0 + (y - y0) * (x1 - x0) / (y1 - y0):
                odd = not odd
        return odd

    wide, high = (box[2] - box[0]) / side, (box[3] - box[1]) / side
    expected = [
        [inside(box[0] + (j + 0.5) * wide, box[1] + (i + 0.5) * high) for j in range(side)] for i in range(side)
    ]
    np.testing.assert_array_equal(instance_shapes.sample([points.astype(np.float32)], box, side), expected)


def pixels_of(shape):
    values = np.arange(len(shape.lengths)) % 2
    return np.repeat(values, shape.lengths).reshape(shape.width, shape.height).T


def test_run_lengths_are_pycocotools_own_in_both_forms():
    masks = pytest.importorskip("pycocotools.mask")
    mask = (RNG.random((17, 23)) < 0.3).astype(np.uint8)
    mask[0, 0] = 1
    compressed = masks.encode(np.asfortranarray(mask))
    for counts in (compressed["counts"], compressed["counts"].decode(), instance_shapes.runs_of(mask != 0)):
        read = instance_shapes.read_shape({"size": [17, 23], "counts": counts}, 17, 23)
        np.testing.assert_array_equal(pixels_of(read), mask)
        assert instance_shapes.area_of(read) == mask.sum()
    assert instance_shapes.runs_of(mask != 0) == instance_shapes.text_runs(compressed["counts"]).tolist()
    for runs in (instance_shapes.runs_of(mask != 0), [0, 99999, 3, 70000, 15, 16, 17]):
        assert instance_shapes.text_runs(instance_shapes.runs_text(runs)).tolist() == runs
    assert instance_shapes.runs_text(instance_shapes.runs_of(mask != 0)).encode() == compressed["counts"]
    for plain in (np.zeros((3, 4)), np.ones((3, 4))):
        np.testing.assert_array_equal(pixels_of(instance_shapes.shape_of(plain != 0)), plain)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_run_lengths_are_sampled_in_their_box_and_are_empty_outside_the_image(share):
    mask = (RNG.random((6, 8)) < share).astype(np.uint8)
    runs = instance_shapes.shape_of(mask != 0)
    np.testing.assert_array_equal(instance_shapes.sample(runs, (1, 2, 5, 6), 4), mask[2:6, 1:5])
    np.testing.assert_array_equal(instance_shapes.sample(runs, (0, 0, 8, 6), 24)[::4], mask.repeat(3, 1))
    np.testing.assert_array_equal(instance_shapes.sample(runs, (-2, -4, 2, 0), 4), 0)
    np.testing.assert_array_equal(
        instance_shapes.sample(runs, (6, 4, 10, 8), 4), np.pad(mask[4:, 6:], ((0, 2), (0, 2)))
    )
    np.testing.assert_array_equal(
        instance_shapes.sample(runs, (-1, -1, 3, 3), 4), np.pad(mask[:3, :3], ((1, 0), (1, 0)))
    )
    assert not instance_shapes.sample(runs, (3, 3, 3, 5), 4).any()


def most_bytes(work):
    """What a function allocated at most, and its result."""
    tracemalloc.start()
    try:
        return work(), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_the_stated_size_of_run_lengths_costs_no_memory():
    height, width = 13_000, 13_700
    stored = {"size": [height, width], "counts": [100 * height, 50 * height, (width - 150) * height]}

    def work():
        shape = instance_shapes.read_shape(stored, height, width)
        return instance_shapes.area_of(shape), instance_shapes.sample(shape, (0, 0, 200, 200), 4).tolist()

    found, num_bytes = most_bytes(work)
    assert found == (50 * height, [[0, 0, 1, 0]] * 4) and num_bytes < 1e6


def test_a_polygon_of_many_edges_is_filled_in_parts():
    zigzag = np.stack([np.linspace(0, 8, 20_000), np.tile([-1.0, 9.0], 10_000)], 1).astype(np.float32)
    whole, num_bytes = most_bytes(lambda: instance_shapes.sample([zigzag], (0, 0, 8, 8), 64))
    assert num_bytes < 40e6
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(instance_shapes, "EDGES", 10**9)
        np.testing.assert_array_equal(instance_shapes.sample([zigzag], (0, 0, 8, 8), 64), whole)
    assert 0.2 < whole.mean() < 0.8


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        (None, "no segmentation"),
        ([], "no segmentation"),
        ([[1, 2, 3, 4]], "a polygon of 4 numbers"),
        ([[1, 2, 3, 4, 5, 6, 7]], "a polygon of 7 numbers"),
        ([[1, 2, 3, float("nan"), 5, 6]], "not finite"),
        ([[0, 0, 1e8, 0, 0, 5]], "outside of ±12, twice the image's larger side"),
        ({"size": [4, 6], "counts": [24]}, r"size \[4, 6\]; the image has \[6, 4\]"),
        ({"size": [6, 4], "counts": [3, 4]}, "sum to 7; the image has 24 pixels"),
        ({"size": [6, 4], "counts": [30, -6]}, "run lengths that sum"),
        ({"size": [6, 4], "counts": [2**62] * 4 + [24]}, "run lengths that sum to 18446744073709551640"),
        ({"size": [6, 4], "counts": "`"}, "end within a number"),
        ({"size": [6, 4]}, "of type NoneType"),
    ],
)
def test_a_broken_segmentation_is_refused_with_the_reason(stored, message):
    with pytest.raises(ValueError, match=message):
        instance_shapes.read_shape(stored, 6, 4)


# --- json


def encoded(width=40, height=30):
    file = io.BytesIO()
    Image.fromarray(RNG.integers(0, 256, (height, width, 3)).astype(np.uint8)).save(file, "JPEG")
    return file.getvalue()


def box_of(number, image=1, category=7, **more):
    polygon = [4.0, 5.0, 24.0, 5.0, 24.0, 20.0, 4.0, 20.0]
    made = {"id": number, "image_id": image, "category_id": category, "bbox": [4.0, 5.0, 20.0, 15.0], "area": 300.0}
    return {**made, "iscrowd": 0, "segmentation": [polygon], **more}


def content(*annotations, count=2):
    images = [{"id": n, "file_name": f"{n}.jpg", "height": 30, "width": 40} for n in range(1, count + 1)]
    return {
        "images": images,
        "annotations": list(annotations),
        "categories": [{"id": 9, "name": "b"}, {"id": 7, "name": "a"}],
    }


def write(root, made, count=2):
    (root / "images").mkdir(parents=True, exist_ok=True)
    for number in range(1, count + 1):
        (root / f"images/{number}.jpg").write_bytes(encoded())
    (root / "set.json").write_text(json.dumps(made))
    return root / "set.json", root / "images"


def opened(root, *annotations, **options):
    return coco_sets.open_format(*write(root, content(*annotations)), **options)


def test_categories_are_numbered_by_their_ids_and_boxes_become_corners(tmp_path):
    found = opened(tmp_path, box_of(1), box_of(2, category=9))
    assert found.classes == ("a", "b") and found.category_ids == (7, 9)
    example = found.source[0]
    np.testing.assert_array_equal(example["boxes"], [[4, 5, 24, 20]] * 2)
    assert example["classes"].tolist() == [0, 1] and example["image_id"] == 1 and example["key"] == "coco_format/1.jpg"
    np.testing.assert_array_equal(instance_shapes.sample(example["shapes"][0], example["boxes"][0], 8), 1)


def test_another_box_or_class_name_is_another_fingerprint(tmp_path):
    """A box that no sampled example shows counts too."""
    marks = []
    for name, x in (("a", 4.0), ("a", 6.0), ("c", 4.0), ("a", 4.0)):
        made = content(box_of(1), box_of(2, bbox=[x, 5.0, 18.0, 15.0])) | {"categories": [{"id": 7, "name": name}]}
        marks.append(data_fingerprint(coco_sets.open_format(*write(tmp_path, made)).source, 1))
    assert len(set(marks)) == 3 and marks[0] == marks[3]


def test_images_without_annotations_are_left_out_of_training_only(tmp_path):
    train, val = opened(tmp_path, box_of(1), training=True), opened(tmp_path, box_of(1))
    assert len(train.source) == 1 and len(val.source) == 2 and len(val.source[1]["boxes"]) == 0
    assert train.notes == ("left out: 1 image without annotations",)
    assert [image["id"] for image in opened(tmp_path, box_of(1), num=1).ground_truth()["images"]] == [1]


@pytest.mark.parametrize(
    "left_out",
    [
        {"ignore": 1},
        {"bbox": [4, 5, 0.5, 9]},
        {"area": 0},
        {"bbox": [50, 5, 9, 9]},
        {"image_id": 99},
        {"image_id": [1]},
    ],
)
def test_annotations_that_are_left_out(tmp_path, left_out):
    assert len(opened(tmp_path, box_of(1), box_of(2) | left_out).source[0]["boxes"]) == 1


def test_a_crowd_stays_and_its_mask_is_not_read(tmp_path):
    crowd = box_of(2, iscrowd=1, segmentation={"counts": "broken"})
    example = opened(tmp_path, crowd, box_of(3)).source[0]
    assert example["crowd"].tolist() == [True, False] and example["shapes"][0] is None


def test_the_ground_truth_has_what_the_scoring_needs(tmp_path):
    """pycocotools reads `iscrowd` and `area`, which many exporters leave out; the area is that of the mask."""
    triangle = [[4.0, 5.0, 24.0, 5.0, 24.0, 20.0]]
    runs = {"size": [30, 40], "counts": [100, 30, 1070]}
    plain = {"iscrowd": None, "area": None}
    found = opened(
        tmp_path,
        box_of(1, segmentation=triangle) | plain,
        box_of(2, segmentation=runs) | plain,
        box_of(3, segmentation=[triangle[0], [1.0, 1.0]]) | plain,
        box_of(4, iscrowd=1, area=None, segmentation=None),
        box_of(5, area=7.5, iscrowd=1),
        {name: value for name, value in box_of(6).items() if name not in plain},
        box_of(7, bbox=[4.0, 5.0, 0.5, 2.0], segmentation=[[1.0, 1.0]]) | plain,
        *(box_of(8, ignore=1) | broken for broken in ({"bbox": None}, {"category_id": None}, {"area": "large"})),
    ).ground_truth()["annotations"]
    assert [annotation["id"] for annotation in found] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert found[3]["segmentation"] == [[4.0, 5.0, 24.0, 5.0, 24.0, 20.0, 4.0, 20.0]]  # the box
    areas, crowds = [annotation["area"] for annotation in found], [annotation["iscrowd"] for annotation in found]
    assert areas == [150.0, 30.0, 300.0, 300.0, 7.5, 300.0, 1.0, 300.0]  # of a broken mask: the box
    assert crowds == [0, 0, 0, 1, 1, 0, 0, 0]


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"bbox": None}, r"annotation 5 has no valid box: None"),
        ({"bbox": [1, 2, 3]}, "no valid box"),
        ({"bbox": [1, 2, 3, float("inf")]}, "no valid box"),
        ({"category_id": None}, "annotation 5 has no category"),
        ({"segmentation": None}, "annotation 5: no segmentation"),
        ({"segmentation": [[1, 2]]}, "annotation 5: a polygon of 2 numbers"),
        ({"segmentation": {"size": [30, 40], "counts": [7]}}, "annotation 5: run lengths that sum to 7"),
        (
            {"segmentation": {"size": [30, 40], "counts": "o" * 60 + "0"}},
            "annotation 5: run lengths with a number above",
        ),
        ({"segmentation": {"size": [30, 40], "counts": [1e400]}}, "annotation 5: "),
        ({"segmentation": {"size": 3, "counts": [7]}}, "annotation 5: run lengths of a mask of size 3"),
        ({"area": "large"}, "annotation 5 has no valid area: 'large'"),
        ({"area": float("nan")}, "annotation 5 has no valid area: nan"),
        ({"iscrowd": "no"}, "annotation 5 has no valid iscrowd: 'no'"),
        ({"bbox": [1, 2, 3, 10**400]}, "no valid box"),
    ],
)
def test_an_image_with_a_broken_annotation_is_refused(tmp_path, broken, message):
    with pytest.raises(BadRecord, match=message):
        opened(tmp_path, box_of(5) | broken).source[0]


def test_masks_of_a_stated_size_that_the_image_does_not_have_take_no_memory(tmp_path, monkeypatch):
    """60 of these held 10 GB."""
    runs = {"size": [13_000, 13_700], "counts": [13_000 * 13_700]}
    made = content(*(box_of(number, segmentation=runs) for number in range(3)), count=1)
    made["images"][0] |= {"height": 13_000, "width": 13_700}
    found = coco_sets.open_format(*write(tmp_path, made))
    monkeypatch.setattr(coco_sets, "read_bytes", lambda path: encoded())  # which asks for its limit, and gives it back

    def work():
        with pytest.raises(BadRecord, match="the set states 13700 x 13000 pixels, the upright image has 40 x 30"):
            next(examples(found.source))
        return found.ground_truth()

    truth, num_bytes = most_bytes(work)
    assert [annotation["segmentation"] for annotation in truth["annotations"]] == [runs] * 3 and num_bytes < 2e6


def test_the_ground_truth_has_no_polygon_far_outside_of_the_image(tmp_path):
    """pycocotools takes memory for each pixel along an edge, and ends with a segmentation fault at 1e8 of them."""
    far = box_of(1, segmentation=[[0, 0, 1e8, 0, 0, 5]]), box_of(2, bbox=[4.0, 5.0, 1e8, 1e8], segmentation=None)
    first, second = opened(tmp_path, *far).ground_truth()["annotations"]
    assert first["segmentation"] == [[4, 5, 24, 5, 24, 20, 4, 20]]
    assert second["segmentation"] == [[4, 5, 40, 5, 40, 30, 4, 30]]


def test_unreadable_images_and_other_sizes_are_refused(tmp_path):
    found = opened(tmp_path, box_of(1), box_of(2, image=2))
    (tmp_path / "images/1.jpg").write_bytes(b"<html>")
    (tmp_path / "images/2.jpg").write_bytes(encoded(30, 40))
    with pytest.raises(BadRecord, match=r"coco_format/1\.jpg: not an image"):
        next(examples(found.source))
    with pytest.raises(BadRecord, match="the set states 40 x 30 pixels, the upright image has 30 x 40"):
        next(examples(found.source, 1))
    (tmp_path / "images/2.jpg").unlink()
    with pytest.raises(BadRecord, match="No such file"):
        found.source[1]


def test_images_may_be_links_but_listed_names_stay_in_their_folder(tmp_path):
    file, folder = write(tmp_path, content(box_of(1)))
    (folder / "1.jpg").rename(tmp_path / "away.jpg")
    (folder / "1.jpg").symlink_to(tmp_path / "away.jpg")
    assert coco_sets.open_format(file, folder).source[0]["image_id"] == 1
    made = content(box_of(1))
    made["images"][0]["file_name"] = "../away.jpg"
    file.write_text(json.dumps(made))
    with pytest.raises(BadRecord, match=r"unsafe path: .*away\.jpg is outside of"):
        coco_sets.open_format(file, folder).source[0]


def changed(**changes):
    return {**content(box_of(1)), **changes}


IMAGE = {"id": 1, "file_name": "1.jpg", "height": 30, "width": 40}


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ([], "not in COCO's format"),
        (changed(categories=None), "needs the lists images, annotations, categories"),
        (changed(categories=[]), "category 7, which it does not list"),
        (changed(annotations=[], categories=[]), "lists no category"),
        (changed(categories=[{"id": 7}]), "category without id or name"),
        (changed(categories=[{"id": 7, "name": "a"}] * 2), "category id 7 more than once"),
        (changed(categories=[{"id": 7, "name": "a"}, {"id": 8, "name": "a"}]), "category name 'a' more than once"),
        (changed(annotations=[box_of(1, category=8)]), "category 8, which it does not list"),
        (changed(images=[{"id": 1}]), "image without id, file_name, height or width"),
        (changed(images=content(count=1)["images"] * 2), "image id 1 more than once"),
        (changed(images=content(count=3)["images"]), r"1 of 3 images of .*; the first is 3\.jpg"),
        (changed(images=[]), "lists no image"),
        (changed(images=[IMAGE | {"height": None}]), r"image 1 .* height None; whole numbers above 0 are required"),
        (changed(images=[IMAGE | {"width": "40"}]), r"image 1 .* width '40'"),
        (changed(images=[IMAGE | {"width": 0}]), r"image 1 .* width 0"),
        (changed(images=[IMAGE | {"id": [1]}]), r"image id \[1\]; a number or a text is required"),
        (changed(images=[IMAGE | {"file_name": 3}]), "image 1 .* file_name 3; a text is required"),
        (changed(categories=[{"id": [7], "name": "a"}]), r"category id \[7\]; a whole number is required"),
    ],
)
def test_a_set_that_cannot_be_used_is_refused(tmp_path, made, message):
    with pytest.raises(MissingData, match=message):
        coco_sets.open_format(*write(tmp_path, made))


def test_the_published_layout_of_coco(tmp_path):
    file, _ = write(tmp_path, content(box_of(1)))
    (tmp_path / "annotations").mkdir()
    file.rename(tmp_path / "annotations/instances_val2017.json")
    with pytest.raises(MissingData, match="no folder val2017"):
        coco_sets.open_coco(str(tmp_path), "val")
    (tmp_path / "images").rename(tmp_path / "val2017")
    assert len(coco_sets.open_coco(str(tmp_path), "val").source) == 2
    with pytest.raises(ValueError, match="unknown split 'test'"):
        coco_sets.open_coco(str(tmp_path), "test")
    with pytest.raises(MissingData, match=r"data\.path '' is not a folder \(data\.source=coco\)"):
        coco_sets.open_coco("", "val")
    with pytest.raises(MissingData, match="is missing: it holds"):
        coco_sets.open_format(tmp_path / "no.json", tmp_path)
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(MissingData, match="not readable as JSON"):
        coco_sets.open_format(tmp_path / "bad.json", tmp_path)


# --- augmentation


def drawn(count, sizes=(480, 640), recipe=None, seed=0):
    return geometry(draws(np.arange(count), seed), np.tile(np.array(sizes), (count, 1)), recipe or Recipe())


def test_sizes_follow_the_recipe():
    found = drawn(4000)
    plain = (found.crop[:, 2:] == found.first).all(1) & (found.first == found.size).all(1)
    assert 0.45 < plain.mean() < 0.56 and 0.45 < found.flipped.mean() < 0.55
    assert set(found.size[plain].min(1)) == set(Recipe().short)
    assert set(found.first[~plain].min(1)) == {400, 500, 600}
    window = found.crop[~plain]
    assert window[:, 2:].min() == 384 and window[:, 2:].max() == 600
    assert ((window[:, :2] + window[:, 2:]) <= found.first[~plain]).all() and window[:, :2].min() == 0
    assert set(found.size[~plain].min(1)) == set(Recipe().short)
    long = fit_sizes(np.array([[100, 1000], [1, 9000], [800, 600]]), 800, 1333)
    np.testing.assert_array_equal(long, [[133, 1333], [1, 1333], [1067, 800]])


def test_boxes_and_masks_move_with_the_image():
    """A bright rectangle on black stays inside its box; its left half, the mask, stays on its side."""
    pixels = np.zeros((60, 90, 3), np.uint8)
    pixels[20:40, 30:70] = 255
    mask = np.zeros((60, 90), bool)
    mask[20:40, 30:50] = True
    found = {"boxes": np.array([[30, 20, 70, 40]], np.float32), "classes": np.array([3]), "crowd": np.array([False])}
    recipe = Recipe(short=(40, 80, 120), long=170, crop_short=(50, 60), crop=(30, 44))
    plans = drawn(60, (60, 90), recipe)
    seen = 0
    for number in range(60):
        plan = type(plans)(*(values[number : number + 1] for values in plans))
        made = augment(pixels, {**found, "shapes": (instance_shapes.shape_of(mask),)}, plan, 20)
        assert made.image.shape[:2] == tuple(plan.size[0])
        if not len(made.boxes):
            assert made.image.mean() < 5
            continue
        seen += 1
        (left, top, right, bottom), bright = made.boxes[0], made.image[..., 0] > 127
        rows, columns = np.flatnonzero(bright.any(1)), np.flatnonzero(bright.any(0))
        np.testing.assert_allclose(
            [left, top, right, bottom], [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], atol=1.6
        )
        whole = plan.crop[0, 2:].tolist() == plan.first[0].tolist()
        if whole:
            half = made.masks[0][:, ::-1] if plan.flipped[0] else made.masks[0]
            np.testing.assert_array_equal(half, np.repeat([[1, 0]], 10, 1).repeat(20, 0))
    assert seen > 40


# --- buckets


SHAPES = ((64, 96), (96, 64), (96, 96))


def test_the_smallest_bucket_that_holds_an_image():
    sizes = np.array([[64, 96], [60, 40], [96, 64], [70, 70]])
    which = buckets.assign(sizes, SHAPES)
    assert which.tolist() == [0, 0, 1, 2]
    used = sum(h * w for h, w in sizes.tolist()) / (3 * 64 * 96 + 96 * 96)
    assert buckets.padding(sizes, which, SHAPES) == pytest.approx(1 - used)


@pytest.mark.parametrize("size", [1, 3, 8])
def test_a_plan_uses_every_position_once_in_batches_of_one_bucket(size):
    which = np.random.default_rng(1).choice(3, 10_000, p=[0.6, 0.38, 0.02]).astype(np.uint8)
    plan = buckets.Plan(lambda positions: which[positions % len(which)], 3, size)
    seen, last = [], -1
    for number in range(400):
        bucket, positions = plan.batch(number)
        assert (which[positions % len(which)] == bucket).all() and len(positions) == size
        assert positions.max() > last
        last = positions.max()
        seen += positions.tolist()
    assert len(set(seen)) == 400 * size
    waiting = set(range(last)) - set(seen)
    assert len(waiting) <= 3 * (size - 1)
    late = buckets.Plan(lambda positions: which[positions % len(which)], 3, size)
    np.testing.assert_array_equal(late.batch(399)[1], plan.batch(399)[1])
    after = [position for position, _ in zip(plan.following(7), range(3))]
    assert after == (7 + np.flatnonzero(which[7:] == which[7]))[:3].tolist()


def test_every_epoch_has_every_example_once():
    positions = np.arange(35)
    found = order(positions, 7, 3).reshape(5, 7)
    assert all(sorted(epoch) == list(range(7)) for epoch in found.tolist())
    assert len({tuple(epoch) for epoch in found.tolist()}) > 1
    np.testing.assert_array_equal(order(np.array([9]), 7, 3), found.reshape(-1)[9])


# --- batches


def stream(source, **changes):
    recipe = Recipe(short=(24, 30), long=40, crop_short=(24, 28), crop=(16, 24))
    options = {"max_instances": 3, "mask_size": 8, "batch_size": 4, **changes}
    return DetectionStream(source, recipe, ((32, 40), (40, 32), (40, 40)), **options)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """Nine images of both orientations with one to five instances."""
    root = tmp_path_factory.mktemp("mixed")
    sizes = [(40, 30), (30, 40), (36, 34)] * 3
    images = [{"id": n, "file_name": f"{n}.jpg", "width": w, "height": h} for n, (w, h) in enumerate(sizes, 1)]
    small = {"bbox": [4.0, 5.0, 20.0, 15.0]}
    annotations = [box_of(10 * n + k, n, 7, **small) for n in range(1, 10) for k in range(1 + n % 5)]
    file, folder = write(root, {**content(), "images": images, "annotations": annotations}, 0)
    for image in images:
        (folder / image["file_name"]).write_bytes(encoded(image["width"], image["height"]))
    return coco_sets.open_format(file, folder).source


def test_a_batch_has_one_shape_and_pads_with_nothing(mixed):
    with Pipeline(stream(mixed), BatchOptions(4)) as batches:
        found = [next(batches) for _ in range(12)]
        assert batches.num_truncated > 0
    assert len({batch["image"].shape for batch in found}) > 1
    for batch in found:
        height, width = batch["image"].shape[1:3]
        assert (height, width) in ((32, 40), (40, 32), (40, 40))
        for number in range(4):
            rows, columns = batch["size"][number]
            assert rows <= height and columns <= width and batch["image"][number, :rows, :columns].any()
            assert not batch["image"][number, rows:].any() and not batch["image"][number, :, columns:].any()
            none = batch["labels"][number] < 0
            assert not batch["boxes"][number][none].any() and not batch["masks"][number][none].any()
            assert (batch["boxes"][number][~none] <= [columns, rows, columns, rows]).all()
    assert found[0]["masks"].dtype == np.uint8 and found[0]["masks"].shape == (4, 3, 8, 8)


def test_batches_resume_at_any_count_and_divide_over_processes(mixed):
    with Pipeline(stream(mixed), BatchOptions(4)) as whole, Pipeline(stream(mixed), BatchOptions(4, start=8)) as late:
        first = [next(whole) for _ in range(5)]
        for batch in first[2:]:
            for name, values in next(late).items():
                np.testing.assert_array_equal(values, batch[name])
    parts = [Pipeline(stream(mixed), BatchOptions(2, process, 2)) for process in range(2)]
    for batch in first:
        own = [next(part) for part in parts]
        np.testing.assert_array_equal(np.concatenate([part["image"] for part in own]), batch["image"])
    for part in parts:
        part.close()


class Broken:
    """A source some of whose records are unreadable."""

    def __init__(self, source, broken):
        self.source, self.broken, self.sizes = source, broken, source.sizes

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        if index in self.broken:
            raise BadRecord(f"record {index}")
        return self.source[index]


def test_a_bad_record_is_replaced_by_one_of_the_same_bucket(mixed):
    with Pipeline(stream(Broken(mixed, {2})), BatchOptions(4, max_bad_ratio=1.0)) as batches:
        shapes_seen = [next(batches)["image"].shape for _ in range(12)]
        assert batches.num_bad > 0
    with Pipeline(stream(mixed), BatchOptions(4)) as batches:
        assert [next(batches)["image"].shape for _ in range(12)] == shapes_seen
    with pytest.raises(TooManyBadRecords, match="100 unreadable records in a row"):
        stream(Broken(mixed, set(range(9))))[0]


def test_crowds_are_left_out_first():
    class One:
        """One image with a crowd and three instances."""

        def __len__(self):
            return 1

        def sizes(self, indices):
            return np.full((len(indices), 2), 32)

        def __getitem__(self, index):
            full = instance_shapes.shape_of(np.ones((32, 32), bool))
            boxes = np.array([[0, 0, 32, 32], [1, 1, 9, 9], [4, 4, 20, 20], [2, 2, 8, 8]], np.float32)
            crowd = np.array([True, False, False, False])
            shape = (None, full, full, full)
            found = {"boxes": boxes, "crowd": crowd, "classes": np.arange(4), "shapes": shape}
            return {"image": np.zeros((32, 32, 3), np.uint8), "size": (32, 32), "key": "one", **found}

    example = DetectionStream(One(), Recipe((32,), 32, 0.0), ((32, 32),), 1, 3, 4)[0]
    assert example["labels"].tolist() == [1, 2, 3] and example["truncated"] and not example["crowd"].any()


# --- stickers


def test_scenes_have_exact_masks_and_a_ground_truth_that_pycocotools_reads():
    masks = pytest.importorskip("pycocotools.mask")
    found = open_stickers("groups", "val", 48, 5)
    truth = found.ground_truth()
    assert len(truth["images"]) == 5 and [c["name"] for c in truth["categories"]] == list(found.classes)
    for annotation in truth["annotations"]:
        stored = annotation["segmentation"]
        mask = masks.decode(masks.frPyObjects(stored, *stored["size"]))
        x, y, w, h = (int(v) for v in annotation["bbox"])
        assert mask.sum() == annotation["area"] == mask[y : y + h, x : x + w].sum() > 0
        assert mask[y].any() and mask[:, x].any() and mask[y + h - 1].any() and mask[:, x + w - 1].any()
    assert len(open_stickers("nouns", "val", 48).classes) == 96 and open_stickers("objects", "val", 48).classes == (
        "object",
    )
