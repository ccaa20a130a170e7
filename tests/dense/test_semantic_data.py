"""Segmentation sets: label rules, layouts of the published sets, stickers and augmentation."""

import functools
import io

import cv2
import numpy as np
import pytest
from PIL import Image

from detailclip_jax.data.decoding import decode_whole
from detailclip_jax.data.sources import BadRecord, MissingData, Picked
from detailclip_jax.dense import set_examples
from detailclip_jax.dense.detection import sticker_instances as detection_stickers
from detailclip_jax.dense.segmentation import segmentation_sets
from detailclip_jax.dense.segmentation.index_masks import IGNORE, stored_values, table
from detailclip_jax.dense.segmentation.label_augment import (
    Recipe,
    augment,
    distort,
    draw_crop,
    resize_image,
    scaled_size,
)
from detailclip_jax.dense.segmentation.segmentation_sets import black_and_white, open_pairs, open_set
from detailclip_jax.dense.segmentation.sticker_labels import LABELS, open_stickers
from detailclip_jax.runtime.provenance import data_fingerprint

RNG = np.random.default_rng(0)


def encoded(pixels, mode=None, kind="PNG", **options):
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels, mode)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


# --- label maps


def test_a_palette_mask_gives_its_indices_and_not_its_colours():
    indices = RNG.integers(0, 21, (5, 7)).astype(np.uint8)
    image = Image.fromarray(indices, "P")
    image.putpalette(RNG.integers(0, 256, 768).astype(np.uint8).tobytes())
    np.testing.assert_array_equal(stored_values(encoded(image), "m"), indices)


def test_a_16_bit_mask_keeps_values_above_255():
    values = np.array([[0, 300], [65535, 7]], np.uint16)
    stored = stored_values(encoded(values), "m")
    np.testing.assert_array_equal(stored, values)
    classes = table({0: 0, 300: 1, 7: 2}, (65535,))(stored, "m")
    np.testing.assert_array_equal(classes, [[0, 1], [IGNORE, 2]])


def test_gray_in_three_channels_is_read():
    gray = RNG.integers(0, 9, (4, 4, 1)).astype(np.uint8).repeat(3, -1)
    np.testing.assert_array_equal(stored_values(encoded(gray), "m"), gray[..., 0])


def test_unknown_labels_are_ignored_on_request():
    stored = np.array([[0, 1, 150, 151]], np.uint8)
    values = {k + 1: k for k in range(150)}
    np.testing.assert_array_equal(table(values, (0,), "ignore")(stored, "m"), [[IGNORE, 0, 149, IGNORE]])


# --- layouts


def put(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def make_image():
    return encoded(RNG.integers(0, 256, (4, 6, 3)).astype(np.uint8), kind="JPEG")


def mask(*values):
    return encoded(np.resize(np.array(values, np.uint8), (4, 6)))


def ade20k(root, split):
    put(root / f"images/{split}/a.jpg", make_image())
    put(root / f"annotations/{split}/a.png", mask(0, 1, 150))


def listed(root, name, kind, values):
    put(root / name, b"a\n")
    put(root / "JPEGImages/a.jpg", make_image())
    put(root / f"{kind}/a.png", mask(*values))


def coco(root, suffix, values, folder="annotations"):
    put(root / "images/train2017/a.jpg", make_image())
    put(root / f"{folder}/train2017/a{suffix}.png", mask(*values))


def cityscapes(root, kind, values):
    put(root / "leftImg8bit/train/ulm/a_leftImg8bit.png", encoded(np.zeros((4, 6, 3), np.uint8)))
    put(root / f"gtFine/train/ulm/a_gtFine_label{kind}.png", mask(*values))


LAYOUTS = {
    "ade20k": (lambda root: ade20k(root, "training"), [-1, 0, 149], 150),
    "voc": (
        lambda root: listed(root, "ImageSets/Segmentation/train.txt", "SegmentationClass", (0, 20, 255)),
        [0, 20, -1],
        21,
    ),
    "voc_aug": (
        lambda root: listed(root, "ImageSets/Segmentation/trainaug.txt", "SegmentationClassAug", (0, 20, 255)),
        [0, 20, -1],
        21,
    ),
    "context": (
        lambda root: listed(root, "ImageSets/SegmentationContext/train.txt", "SegmentationClassContext", (0, 1, 59)),
        [-1, 0, 58],
        59,
    ),
    "context60": (
        lambda root: listed(root, "ImageSets/SegmentationContext/train.txt", "SegmentationClassContext", (0, 1, 59)),
        [0, 1, 59],
        60,
    ),
    "coco_stuff": (lambda root: coco(root, "_labelTrainIds", (0, 170, 255)), [0, 170, -1], 171),
    "cityscapes": (lambda root: cityscapes(root, "TrainIds", (0, 18, 255)), [0, 18, -1], 19),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_published_layout_gives_class_numbers(name, tmp_path):
    write, expected, count = LAYOUTS[name]
    write(tmp_path)
    found = open_set(name, str(tmp_path), "train")
    assert len(found.source) == 1 and len(found.classes) == count
    example = found.source[0]
    np.testing.assert_array_equal(example["mask"], np.resize(expected, (4, 6)))
    assert example["mask"].dtype == np.int16 and example["key"].startswith(f"{name}/a")


def test_raw_ids_of_coco_and_cityscapes_are_mapped(tmp_path):
    coco(tmp_path / "coco", "", (0, 10, 12, 181, 255), "stuffthingmaps")
    masks = open_set("coco_stuff", str(tmp_path / "coco"), "train").source[0]["mask"]
    np.testing.assert_array_equal(masks.ravel()[:5], [0, 10, 11, 170, -1])  # 11 (street sign) is unused
    cityscapes(tmp_path / "city", "Ids", (7, 33, 0, 11))
    masks = open_set("cityscapes", str(tmp_path / "city"), "train").source[0]["mask"]
    np.testing.assert_array_equal(masks.ravel()[:4], [0, 18, -1, 2])


def test_any_folders_with_a_class_list(tmp_path):
    put(tmp_path / "images/train/b.png", encoded(np.zeros((4, 6, 3), np.uint8)))
    put(tmp_path / "masks/train/b.png", mask(0, 1, 255))
    with pytest.raises(
        MissingData, match=r"the class list .*classes\.txt' is not a file; it has one class name per line"
    ):
        open_set("folders", str(tmp_path), "train")
    put(tmp_path / "classes.txt", b"sea\nland\n")
    found = open_set("folders", str(tmp_path), "train")
    assert found.classes == ("sea", "land")
    np.testing.assert_array_equal(found.source[0]["mask"].ravel()[:3], [0, 1, -1])
    put(tmp_path / "masks/train/b.png", mask(2))
    with pytest.raises(BadRecord, match=r"folders/b\.png: 100\.0% of the mask have the values 2"):
        found.source[0]
    put(tmp_path / "masks/train/b.png", encoded(np.zeros((5, 6), np.uint8)))
    with pytest.raises(BadRecord, match="different sizes, 6 x 4 and 6 x 5"):
        found.source[0]


def test_any_two_folders_with_a_class_list(tmp_path):
    photos, labels, classes = str(tmp_path / "photos"), str(tmp_path / "labels"), ("sea", "land")
    put(tmp_path / "photos/b.jpg", make_image())
    put(tmp_path / "photos/c.jpg", make_image())
    put(tmp_path / "photos/._c.jpg", b"of macOS")
    put(tmp_path / "labels/b.png", mask(0, 1, 255))
    with pytest.raises(MissingData, match=r"1 of 2 images of .*photos have no mask; .*c\.jpg, without .*labels/c\.png"):
        open_pairs(photos, labels, classes)
    (tmp_path / "photos/c.jpg").unlink()
    found = open_pairs(photos, labels, classes)
    assert found.name == "pairs" and found.classes == ("sea", "land") and found.source[0]["key"] == "pairs/b.jpg"
    np.testing.assert_array_equal(found.source[0]["mask"].ravel()[:3], [0, 1, -1])
    with pytest.raises(MissingData, match=r"labels has no images; looked for files that end in .*jpg"):
        (tmp_path / "labels/b.png").rename(tmp_path / "b.png")
        open_pairs(labels, photos, classes)
    put(tmp_path / "labels/b.png", mask(2))
    with pytest.raises(BadRecord, match="the mask have the values 2"):
        found.source[0]
    assert open_pairs(photos, labels, classes, "ignore").source[0]["mask"].max() == -1


def test_masks_of_0_and_255_are_warned_of_with_the_way_out(tmp_path):
    for name in "abc":
        put(tmp_path / f"photos/{name}.jpg", make_image())
        put(tmp_path / f"labels/{name}.png", mask(0, 255))
    open_them = lambda: open_pairs(str(tmp_path / "photos"), str(tmp_path / "labels"), ("ground", "box"))
    (warning,) = black_and_white(open_them())
    assert "0 and 255 alone; 255 is ignored" in warning and "every other pixel is 'ground'" in warning
    assert "// 255).save(MASK) stores 1" in warning
    put(tmp_path / "labels/b.png", b"damaged")
    assert black_and_white(open_them())
    put(tmp_path / "labels/b.png", mask(0, 1, 255))
    assert not black_and_white(open_them()) and not black_and_white(open_stickers("groups", "val", 48, 2))


def test_a_class_list_is_read_line_by_line(tmp_path):
    put(tmp_path / "images/train/b.png", encoded(np.zeros((4, 6, 3), np.uint8)))
    put(tmp_path / "masks/train/b.png", mask(0, 1, 255))
    put(tmp_path / "classes.txt", "\ufeffsea\r\nl\u00e4nd\r\n\r\n".encode())
    assert open_set("folders", str(tmp_path), "train").classes == ("sea", "l\u00e4nd")


def test_a_class_list_may_have_as_many_names_as_int16_has_numbers(tmp_path):
    put(tmp_path / "images/train/b.png", encoded(np.zeros((4, 6, 3), np.uint8)))
    put(tmp_path / "masks/train/b.png", encoded(np.full((4, 6), 32_767, np.uint16)))
    put(tmp_path / "classes.txt", "\n".join(map(str, range(32_768))).encode())
    assert open_set("folders", str(tmp_path), "train").source[0]["mask"].max() == 32_767


def test_an_unreadable_image_is_a_bad_record(tmp_path):
    ade20k(tmp_path, "training")
    half = encoded(RNG.integers(0, 256, (60, 80, 3)).astype(np.uint8))[:5000]  # a PNG is read whole for its EXIF
    for data in (b"no image", half):
        put(tmp_path / "images/training/a.jpg", data)
        with pytest.raises(BadRecord, match=r"ade20k/a\.jpg: "):
            open_set("ade20k", str(tmp_path), "train").source[0]


def test_a_large_jpeg_is_refused_and_not_reduced(monkeypatch):
    """`decode` reduces it, but a mask belongs to the pixels of the whole image."""
    monkeypatch.setattr(set_examples, "decode_whole", functools.partial(decode_whole, max_pixels=600))
    data = encoded(np.zeros((30, 40, 3), np.uint8), kind="JPEG")
    with pytest.raises(BadRecord, match=r"^a: too large: 40 x 30 pixels, the limit is 600 where .*; cut it into tiles"):
        set_examples.pixels_of({"image": data, "key": "a"})


def test_the_identity_of_a_set_changes_with_its_masks(tmp_path):
    put(tmp_path / "classes.txt", b"sea\nland\n")
    put(tmp_path / "images/train/b.png", encoded(np.zeros((4, 6, 3), np.uint8)))
    found = []
    for values in ((0, 1), (0, 1), (1, 0)):
        put(tmp_path / "masks/train/b.png", mask(*values))
        found.append(data_fingerprint(Picked(open_set("folders", str(tmp_path), "train").source, [0])))
    assert found[0] == found[1] != found[2]


def test_links_are_followed_and_listed_names_stay_in_the_folders_of_images_and_masks(tmp_path):
    root, away = tmp_path / "voc", tmp_path / "away"
    listed(root, "ImageSets/Segmentation/train.txt", "SegmentationClass", (0, 20))
    put(away / "secret.jpg", make_image())
    put(away / "secret.png", mask(0))
    (root / "JPEGImages/b.jpg").symlink_to(away / "secret.jpg")
    put(root / "SegmentationClass/b.png", mask(0))
    put(root / "JPEGImages/c.jpg", make_image())
    (root / "SegmentationClass/c.png").symlink_to(away / "secret.png")
    put(root / "ImageSets/Segmentation/train.txt", b"a\nb\nc\n../../away/secret\n")
    found = open_set("voc", str(root), "train").source
    assert [found[number]["key"] for number in range(3)] == ["voc/a.jpg", "voc/b.jpg", "voc/c.jpg"]
    with pytest.raises(BadRecord, match=r"unsafe path: .*secret\.jpg is outside of .*JPEGImages"):
        found[3]
    (tmp_path / "alias").symlink_to(root)
    (root / "JPEGImages").rename(tmp_path / "images")
    (root / "JPEGImages").symlink_to(tmp_path / "images")  # the layout's own folder may be a link
    assert open_set("voc", str(tmp_path / "alias"), "train").source[0]["key"] == "voc/a.jpg"


def test_the_name_lists_have_the_published_lengths_and_no_doubles():
    lists = {"VOC": 21, "CONTEXT": 59, "CITYSCAPES": 19, "COCO_STUFF": 171, "ADE20K": 150}
    for name, count in lists.items():
        assert len(getattr(segmentation_sets, name)) == len(set(getattr(segmentation_sets, name))) == count


# --- stickers


def test_stickers_have_three_label_sets_on_the_same_scenes():
    objects, groups, nouns = (open_stickers(labels, "val", 64, 3).source[1] for labels in LABELS)
    for other in (groups, nouns):
        np.testing.assert_array_equal(objects["image"], other["image"])
        np.testing.assert_array_equal(objects["mask"], other["mask"] > 0)
    np.testing.assert_array_equal(groups["mask"], groups["segmentation"])
    for number, noun in enumerate(nouns["nouns"], 1):
        assert (nouns["mask"][nouns["instances"] == number] == 1 + noun).all()
    assert [len(open_stickers(labels, "train", 64).classes) for labels in LABELS] == [2, 25, 97]


def test_the_objects_of_segmentation_are_those_of_detection_and_of_the_foreground_iou():
    scene = open_stickers("objects", "val", 64, 3).source[2]
    detected = detection_stickers.open_stickers("objects", "val", 64, 3).source[2]
    runs = [np.arange(len(shape.lengths)) % 2 for shape in detected["shapes"]]  # of a column after the other
    masks = [
        np.repeat(values, shape.lengths).reshape(shape.width, shape.height).T
        for values, shape in zip(runs, detected["shapes"])
    ]
    np.testing.assert_array_equal(scene["mask"], np.any(masks, axis=0))
    np.testing.assert_array_equal(scene["mask"], scene["segmentation"] > 0)  # as `over_foreground` has it
    assert open_stickers("objects", "val", 64).classes[1:] == detection_stickers.LABELS["objects"]


# --- augmentation


def scene(height=60, width=80):
    image = RNG.integers(0, 256, (height, width, 3)).astype(np.uint8)
    return image, RNG.integers(-1, 4, (height, width)).astype(np.int16)


@pytest.mark.parametrize(
    ("size", "expected"),
    [((600, 800), (512, 683)), ((512, 4096), (256, 2048)), ((683, 512), (683, 512)), ((1, 3000), (1, 2048))],
)
def test_images_are_resized_into_the_scale(size, expected):
    assert scaled_size(size, (2048, 512)) == expected


def test_an_example_depends_on_its_seed_alone_and_has_the_crop_s_size():
    image, mask = scene()
    recipe = Recipe(crop=32, scale=(128, 32))
    first, again, other = (augment(np.random.default_rng(seed), image, mask, recipe) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.labels, again.labels)
    assert np.abs(first.image.astype(int) - other.image).max() > 0
    assert first.image.shape == (32, 32, 3) and first.labels.shape == (32, 32) and first.labels.dtype == np.int16


def test_padding_has_no_label_and_no_pixel():
    image, mask = scene()
    example = augment(np.random.default_rng(0), image + 1, np.abs(mask), Recipe(32, (128, 32), (0.5, 0.5)))
    height, width = example.size
    assert (height, width) == (16, 21)
    assert (example.labels[height:] == IGNORE).all() and (example.labels[:, width:] == IGNORE).all()
    assert not example.image[height:].any() and not example.image[:, width:].any()
    assert (example.labels[:height, :width] != IGNORE).all()


def test_the_jittered_scale_is_cut_to_whole_pixels():
    """mmseg's rule: a scale of (2048, 512) and a factor of .8797 give (1801, 450), not (1801.6, 450.4)."""
    image, mask = np.zeros((400, 600, 3), np.uint8), np.zeros((400, 600), np.int16)
    recipe = Recipe(1024, jitter=(0.8797, 0.8797), max_share=1.0, photometric=False)
    assert augment(np.random.default_rng(0), image, mask, recipe).size == (450, 675)  # of 450.4: 676 columns


def test_image_and_mask_stay_aligned():
    """A mask drawn from the image's own brightness is the brightness of the augmented image."""
    mask = np.zeros((64, 64), np.int16)
    mask[20:50, 10:40] = 1
    image = np.repeat((mask * 255).astype(np.uint8)[..., None], 3, -1)
    for seed in range(5):
        recipe = Recipe(32, (64, 64), (0.8, 1.6), photometric=False)
        example = augment(np.random.default_rng(seed), image, mask, recipe)
        inside = example.labels >= 0
        wrong = ((example.image[..., 0] > 127) != (example.labels == 1)) & inside
        assert wrong.mean() < 0.05


def test_a_flip_mirrors_both():
    image, mask = scene(32, 32)
    plain, flipped = (
        augment(np.random.default_rng(0), image, mask, Recipe(32, (32, 32), (1, 1), 1.0, flip, False))
        for flip in (0.0, 1.0)
    )
    np.testing.assert_array_equal(plain.image, flipped.image[:, ::-1])
    np.testing.assert_array_equal(plain.labels, flipped.labels[:, ::-1])


def test_crops_avoid_one_class_filling_them():
    mask = np.zeros((64, 64), np.int16)
    mask[:, 48:] = 1
    shares = {}
    for limit in (0.75, 1.0):
        crops = [draw_crop(np.random.default_rng(seed), mask, 16, limit) for seed in range(60)]
        shares[limit] = np.mean([(mask[t : t + 16, left : left + 16] == 0).mean() >= 0.75 for t, left in crops])
    assert shares[0.75] < shares[1.0] - 0.3
    ignored = np.full((64, 64), IGNORE, np.int16)
    draw_crop(np.random.default_rng(0), ignored, 16, 0.75)  # eleven draws, the last is taken
    assert draw_crop(np.random.default_rng(0), mask, 100, 0.75) == (0, 0)


def test_photometric_distortion_stays_within_its_ranges():
    gray = np.full((4, 4, 3), 100, np.uint8)
    made = np.stack([distort(np.random.default_rng(seed), gray) for seed in range(300)]).astype(int)
    assert made.min() >= (100 - 32) * 0.5 - 2 and made.max() <= (100 + 32) * 1.5 + 2
    assert (made == 100).all((1, 2, 3)).mean() > 0.1  # each change has probability 1/2
    assert made.std() > 5


def test_photometric_distortion_is_mmseg_s():
    """Each change on its own: scaled in float32 and truncated; saturation and hue convert to HSV and back each."""
    image = scene()[0]
    both = 0
    for seed in range(40):
        draws = np.random.default_rng(seed)
        offset = draws.uniform(-32, 32) if draws.random() < 0.5 else None
        contrast_first = draws.random() < 0.5
        contrast, saturation = (draws.uniform(0.5, 1.5) if draws.random() < 0.5 else None for _ in range(2))
        turn = draws.integers(-18, 18) if draws.random() < 0.5 else None
        expected = image if offset is None else scaled(image, 1.0, offset)
        expected = scaled(expected, contrast) if contrast and contrast_first else expected
        if saturation:
            hsv = cv2.cvtColor(expected, cv2.COLOR_RGB2HSV)
            hsv[..., 1] = scaled(hsv[..., 1], saturation)
            expected = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
        if turn is not None:
            hsv = cv2.cvtColor(expected, cv2.COLOR_RGB2HSV)
            hsv[..., 0] = (hsv[..., 0].astype(int) + turn) % 180
            expected = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
        expected = scaled(expected, contrast) if contrast and not contrast_first else expected
        both += bool(saturation) and turn is not None
        np.testing.assert_array_equal(distort(np.random.default_rng(seed), image), expected)
    assert both > 5


def scaled(values, factor, offset=0.0):
    return np.clip(values.astype(np.float32) * factor + offset, 0, 255).astype(np.uint8)


def test_hue_turns_by_36_degrees_at_most():
    red = np.zeros((2, 2, 3), np.uint8)
    red[..., 0] = 200
    for seed in range(100):
        made = distort(np.random.default_rng(seed), red)
        hue = int(cv2.cvtColor(made, cv2.COLOR_RGB2HSV)[0, 0, 0])
        assert min(hue, 180 - hue) <= 20  # rounding to bytes turns it by another step or two


def test_the_resize_is_opencv_s_and_pytorch_s_bilinear():
    torch = pytest.importorskip("torch")
    image = scene(11, 7)[0]
    theirs = torch.nn.functional.interpolate(
        torch.from_numpy(image).movedim(-1, 0)[None].float(), size=(23, 5), mode="bilinear", align_corners=False
    )
    assert np.abs(resize_image(image, (23, 5)) - theirs[0].movedim(0, -1).numpy()).max() <= 1
