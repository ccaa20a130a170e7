"""Metrics against a naive loop and scikit-learn; sliding windows against a naive loop."""

import jax.numpy as jnp
import numpy as np
import pytest

from detailclip_jax.dense.segmentation import confusion
from detailclip_jax.dense.segmentation.index_masks import IGNORE
from detailclip_jax.dense.segmentation.label_maps import Inference, predict
from detailclip_jax.inference.windows import assembly, places

RNG = np.random.default_rng(0)
K = 4


def maps(height=20, width=24):
    """Blobs of classes, a prediction that is partly right, and pixels without a label."""
    truth = RNG.integers(0, K, (height // 4, width // 4)).repeat(4, 0).repeat(4, 1).astype(np.int16)
    predicted = np.where(RNG.random(truth.shape) < 0.7, truth, RNG.integers(0, K, truth.shape)).astype(np.int16)
    truth[RNG.random(truth.shape) < 0.1] = -1
    return truth, predicted


def summed(pairs):
    total = confusion.no_counts(K)
    for truth, predicted in pairs:
        total = total.plus(confusion.counts_of(truth, predicted, K))
    return total


def test_scores_are_those_of_a_naive_loop_and_of_scikit_learn():
    pairs = [maps(), maps(12, 32)]
    scores = confusion.scores(summed(pairs))
    inter, union, true = np.zeros(K), np.zeros(K), np.zeros(K)
    for truth, predicted in pairs:
        for t, p in zip(truth.ravel().tolist(), predicted.ravel().tolist()):
            if t < 0:
                continue
            true[t] += 1
            inter[t] += t == p
            union[t] += 1
            union[p] += t != p
    assert scores["mIoU"] == pytest.approx(100 * (inter / union).mean())
    assert scores["mAcc"] == pytest.approx(100 * (inter / true).mean())
    assert scores["aAcc"] == pytest.approx(100 * inter.sum() / true.sum())
    sklearn = pytest.importorskip("sklearn.metrics")
    truth, predicted = (np.concatenate([pair[i].ravel() for pair in pairs]) for i in (0, 1))
    kept = truth >= 0
    assert scores["mIoU"] == pytest.approx(100 * sklearn.jaccard_score(truth[kept], predicted[kept], average="macro"))
    assert scores["mAcc"] == pytest.approx(100 * sklearn.balanced_accuracy_score(truth[kept], predicted[kept]))


def test_a_perfect_prediction_is_100_everywhere_and_absent_classes_count_nowhere():
    truth = np.zeros((20, 20), np.int16)
    truth[5:9, 5:9] = 2
    counts = confusion.counts_of(truth, truth, K)
    assert set(confusion.scores(counts).values()) == {100.0}
    rows = confusion.table(counts, list("abcd"))
    assert rows["b"] == {"IoU": None, "Acc": None, "boundary_IoU": None} and rows["c"]["IoU"] == 100
    predicted = truth.copy()
    predicted[0, 0] = 3  # a class that is only predicted has IoU 0, and no accuracy
    counts = confusion.counts_of(truth, predicted, K)
    assert confusion.table(counts, list("abcd"))["d"] == {"IoU": 0.0, "Acc": None, "boundary_IoU": 0.0}


def test_an_image_without_labels_changes_no_score():
    pairs = [maps()]
    ignored = np.full((8, 8), -1, np.int16), np.zeros((8, 8), np.int16)
    without, together = summed(pairs), summed([*pairs, ignored])
    for name in ("confusion", "boundary", "by_size"):
        np.testing.assert_array_equal(getattr(without, name), getattr(together, name))
    assert together.ignored == without.ignored + 64
    assert confusion.scores(summed([ignored])) == {}


def test_boundary_iou_is_that_of_a_naive_distance():
    truth, predicted = np.zeros((40, 60), np.int16), np.zeros((40, 60), np.int16)
    truth[8:30, 10:40], predicted[10:32, 12:42] = 1, 1
    width = round(0.02 * np.hypot(40, 60))

    def boundary(region):
        """Pixels with one outside the region, or the image's border, within `width` in chessboard distance."""
        out = np.pad(~region, width, constant_values=True)
        h, w = region.shape
        near = [out[i : i + h, j : j + w] for i in range(2 * width + 1) for j in range(2 * width + 1)]
        return region & np.any(near, 0)

    counts = confusion.boundary_counts(truth, predicted, 2)
    for number in (0, 1):
        a, b = boundary(truth == number), boundary(predicted == number)
        assert counts[:, number].tolist() == [(a & b).sum(), (a | b).sum()]
    whole = confusion.scores(confusion.counts_of(truth, predicted, 2))
    assert whole["boundary_mIoU"] < whole["mIoU"]


def test_counts_by_size_add_up_to_the_usual_ones():
    counts = summed([maps(48, 64), maps()])
    hits, true, wrong = counts.by_size.sum(0)
    right = np.diag(counts.confusion)
    np.testing.assert_array_equal(hits, right)
    np.testing.assert_array_equal(true, counts.confusion.sum(1))
    np.testing.assert_array_equal(wrong, counts.confusion.sum(0) - right)


def test_objects_are_sorted_by_their_share_of_the_image():
    truth = np.zeros((100, 100), np.int16)
    truth[:5, :6], truth[20:30, 20:30], truth[50:90, 50:90] = 1, 1, 1  # .3 %, 1 % and 16 %
    predicted = truth.copy()
    predicted[20:30, 20:30] = 0
    scores = confusion.scores(confusion.counts_of(truth, predicted, 2))
    assert confusion.size_counts(truth, predicted, 2)[:, 1, 1].tolist() == [30, 100, 1600]
    assert scores["mIoU_small"] == 100 and scores["mIoU_medium"] == 0 and scores["mIoU_large"] > 98
    joined = np.where(truth == 1, 1, 0)  # the same pixels as one instance
    assert confusion.size_counts(truth, predicted, 2, joined)[:, 1, 1].tolist() == [0, 0, 1730]


# --- inference


@pytest.mark.parametrize(
    ("size", "window", "stride", "starts"),
    [(683, 512, 341, (0, 171)), (512, 512, 341, (0,)), (1200, 512, 341, (0, 341, 682, 688)), (300, 512, 341, (0,))],
)
def test_windows_are_mmseg_s(size, window, stride, starts):
    placed = places(size, 16, window, stride, False)
    assert placed.starts == starts and placed.extent == min(window, size)
    covered = np.zeros(size, bool)
    for start in starts:
        covered[start : start + window] = True
    assert covered.all()


PATCH = 4
WEIGHTS = RNG.standard_normal((3, K)).astype(np.float32)


def network(images):
    """Logits at every fourth of the pixels, which depend on the window's position in the image."""
    missing = [max(PATCH - side, 0) for side in images.shape[1:3]]
    images = np.pad(images, [(0, 0), *((n // 2, n - n // 2) for n in missing), (0, 0)], constant_values=128)
    b, h, w, _ = images.shape
    cells = images[:, : h // 4 * 4, : w // 4 * 4].reshape(b, h // 4, 4, w // 4, 4, 3).mean((2, 4)) / 64 - 2
    ramp = np.linspace(-1, 1, w // 4)[None, None, :, None] * np.arange(K)
    return jnp.asarray(cells @ WEIGHTS + ramp, jnp.float32)


def up(logits, size):
    torch = pytest.importorskip("torch")
    x = torch.from_numpy(np.moveaxis(np.asarray(logits, np.float32), -1, 1).copy())
    made = torch.nn.functional.interpolate(x, size=size, mode="bilinear", align_corners=False)
    return np.moveaxis(made.numpy(), 1, -1)


def scores(window):
    """Scores of the pixels of one window; of one that is narrower than a patch, the middle of the padded one's."""
    height, width = window.shape[:2]
    sides = max(height, PATCH), max(width, PATCH)
    top, left = (sides[0] - height) // 2, (sides[1] - width) // 2
    return up(network(window[None]), sides)[0, top : top + height, left : left + width]


def naive(image, test):
    """One window after the other, scores summed and counted, as its description says."""
    from detailclip_jax.dense.segmentation.label_augment import resize_image, scaled_size

    size = scaled_size(image.shape[:2], test.scale)
    small = resize_image(image, size)
    if test.mode == "whole":
        return up(scores(small)[None], image.shape[:2])[0].argmax(-1)
    total, count = np.zeros((*size, K)), np.zeros((*size, 1))
    rows, columns = (range(max(side - test.window + test.stride - 1, 0) // test.stride + 1) for side in size)
    for i in rows:
        for j in columns:
            y2, x2 = (min(n * test.stride + test.window, side) for n, side in zip((i, j), size))
            y1, x1 = max(y2 - test.window, 0), max(x2 - test.window, 0)
            total[y1:y2, x1:x2] += scores(small[y1:y2, x1:x2])
            count[y1:y2, x1:x2] += 1
    return up((total / count)[None], image.shape[:2])[0].argmax(-1)


def make_image(height, width):
    coarse = RNG.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3)).astype(np.uint8)
    return coarse.repeat(8, 0).repeat(8, 1)[:height, :width]


SHAPES = [(32, 48), (70, 40), (40, 90), (33, 31), (20, 64), (5, 300), (400, 9)]


@pytest.mark.parametrize("mode", ["slide", "whole"])
def test_label_maps_are_those_of_a_naive_loop(mode):
    test = Inference(mode, (128, 32), 32, 21)
    images = [make_image(*shape) for shape in SHAPES]
    for batch_size in (3, 4):
        made = list(predict(network, images, test, batch_size, PATCH))
        for image, labels in zip(images, made):
            assert labels.shape == image.shape[:2] and labels.dtype == np.int16
            assert (labels == naive(image, test)).mean() > 0.998  # ties may round to either class
            assert len(np.unique(labels)) > 1


def test_one_window_that_covers_the_image_is_the_whole_image():
    images = [make_image(32, 32), make_image(64, 64)]
    slide, whole = (list(predict(network, images, Inference(mode, (32, 32), 32, 21))) for mode in ("slide", "whole"))
    for one, other in zip(slide, whole):
        np.testing.assert_array_equal(one, other)


def test_the_assembly_of_a_constant_is_that_constant():
    placed = places(90, 4, 32, 21, False)
    matrix = assembly(placed, 8, 57, np.float64)
    assert matrix.shape == (57, len(placed.starts) * 8)
    np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-6)


def test_batches_have_one_size_and_images_may_share_them():
    sizes = []

    def counted(images):
        sizes.append(images.shape)
        return network(images)

    list(predict(counted, [make_image(32, 48)] * 5, Inference("slide", (128, 32), 32, 21), 4))
    assert sizes == [(4, 32, 32, 3)] * 3  # ten windows
    with pytest.raises(ValueError, match="'sliding' is unknown; known: slide, whole"):
        list(predict(network, [], Inference("sliding")))


def test_gaps_are_classes_without_a_pixel_and_mostly_ignored_masks():
    classes = ("ground", "box")
    truth = np.zeros((4, 4), np.int16)
    truth[0] = 1
    assert confusion.gaps(confusion.counts_of(truth, truth, 2), classes) == []
    truth[1:] = IGNORE
    truth[1, 0] = 0
    (line,) = confusion.gaps(confusion.counts_of(truth, truth, 2), classes)
    assert "68.8%" in line  # 11 of 16 pixels
    truth[:] = 1
    (line,) = confusion.gaps(confusion.counts_of(truth, truth, 2), classes)
    assert "1 of 2 classes" in line and "(ground)" in line
    truth[0, 0] = IGNORE
    assert len(confusion.gaps(confusion.counts_of(truth, truth, 2), classes)) == 2
