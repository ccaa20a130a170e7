"""Images of their own aspect: the published sizes, patches and padding."""

import numpy as np
import pytest
from PIL import Image

from detailclip_jax.data import native_aspect
from detailclip_jax.data.pipeline import BatchOptions, Pipeline, Stream
from detailclip_jax.data.tokenizer import Tokenizer
from detailclip_jax.data.views import Crop

SHAPES = [(224, 224), (480, 640), (640, 480), (1, 1), (3, 5), (17, 4000), (4000, 17), (1, 9000), (1333, 801), (63, 64)]


def published(height, width, patch, budget):
    """The size by transformers' Siglip2ImageProcessor, in patches."""
    processing = pytest.importorskip("transformers.models.siglip2.image_processing_pil_siglip2")
    size = processing.get_image_size_for_max_num_patches(height, width, patch, budget)
    return tuple(side // patch for side in size)


@pytest.mark.parametrize("patch, budget", [(16, 256), (16, 1024), (14, 1), (8, 100), (32, 7)])
def test_sizes_are_the_published_ones(patch, budget):
    drawn = np.random.default_rng(0).integers(1, 3000, (40, 2)).tolist()
    for height, width in (*SHAPES, *drawn):
        grid = native_aspect.native_size(height, width, patch, budget)
        assert grid == published(height, width, patch, budget), (height, width)
        assert min(grid) >= 1 and grid[0] * grid[1] <= budget


def test_a_square_fills_a_square_budget():
    assert native_aspect.native_size(500, 500, 16, 256) == (16, 16)
    assert native_aspect.native_size(480, 640, 16, 256) == (14, 18)


def test_a_view_is_the_resized_image_in_patches_and_padding():
    image = np.random.default_rng(1).integers(0, 256, (30, 50, 3), np.uint8)
    view = native_aspect.native_view(image, 4, 20, "bilinear")
    assert view.patches.shape == (20, 48) and view.patches.dtype == np.uint8
    rows, columns = view.grid
    assert (rows, columns) == native_aspect.native_size(30, 50, 4, 20)
    resized = np.asarray(Image.fromarray(image).resize((columns * 4, rows * 4), Image.Resampling.BILINEAR))
    for number in range(rows * columns):
        y, x = divmod(number, columns)
        patch = resized[4 * y : 4 * y + 4, 4 * x : 4 * x + 4]
        np.testing.assert_array_equal(view.patches[number], patch.reshape(-1))
    assert not view.patches[rows * columns :].any()
    np.testing.assert_array_equal(view.valid, np.arange(20) < rows * columns)


def test_views_of_other_shapes_are_stacked():
    views = [native_aspect.native_view(np.zeros((*shape, 3), np.uint8), 4, 9, "bicubic") for shape in ((8, 8), (5, 40))]
    both = native_aspect.stacked(views)
    assert both.patches.shape == (2, 9, 48) and both.grid.shape == (2, 2)
    assert both.valid.sum(1).tolist() == both.grid.prod(1).tolist()


KINDS = native_aspect.Kinds((8,), ((6, 4), (20, 4)), seed=3)


class Photos:
    """Noise of many aspects."""

    def __len__(self):
        return 12

    def __getitem__(self, index):
        image = np.random.default_rng(index).integers(0, 256, (20 + 9 * index, 80, 3), np.uint8)
        return {"image": image, "captions": ("a photo",), "label": -1, "key": str(index)}


def batches(count, kinds=KINDS, **options):
    crops = {"large": Crop(kind="whole", filter="bilinear")}
    with Pipeline(Stream(Photos(), crops, Tokenizer(), native=kinds), BatchOptions(kinds=kinds, **options)) as found:
        return [next(found) for _ in range(count)]


def test_a_training_batch_has_one_length_for_all_processes_and_after_a_resume():
    whole = batches(5, batch_size=4)
    lengths = [batch["image"]["large"].shape[2] for batch in whole]
    assert set(lengths) == {6, 20}
    for batch, length in zip(whole, lengths):
        assert batch["image"]["large"].shape == (4, 1, length, 192) and batch["image"]["large"].dtype == np.uint8
        assert batch["grid"]["large"].shape == (4, 1, 2) and batch["grid"]["large"].prod(-1).max() <= length
        for (_, _, width, height), grid in zip(batch["box"]["large"][:, 0], batch["grid"]["large"][:, 0]):
            assert tuple(grid) == native_aspect.native_size(int(height), int(width), 8, length)
    parts = [batches(5, batch_size=2, process_index=index, process_count=2) for index in (0, 1)]
    for batch, own in zip(whole, zip(*parts)):
        np.testing.assert_array_equal(batch["image"]["large"], np.concatenate([part["image"]["large"] for part in own]))
    resumed = batches(2, batch_size=4, start=12)
    for batch, own in zip(whole[3:], resumed):
        np.testing.assert_array_equal(batch["image"]["large"], own["image"]["large"])


BUDGET = native_aspect.Kinds((4, 8), ((6, 12), (20, 4)), seed=3)  # 80 patches, in multiples of 4 images


def test_batches_of_a_budget_hold_every_example_once_and_are_the_same_after_a_resume():
    whole = batches(8, BUDGET, batch_size=4)
    kinds = [BUDGET.of(number) for number in range(8)]
    assert {(kind.patch_size, kind.num_patches) for kind in kinds} == {(4, 6), (4, 20), (8, 6), (8, 20)}
    for batch, (patch_size, num_patches, images) in zip(whole, kinds, strict=True):
        assert batch["image"]["large"].shape == (images, 1, num_patches, 3 * patch_size**2)
        assert images * num_patches <= 80
    starts = [BUDGET.start(number) for number in range(9)]
    assert starts == [0, *np.cumsum([kind.images for kind in kinds])]
    assert [BUDGET.number(position) for position in (*starts, starts[3] - 1)] == [*range(9), 2]
    epoch = [batch["box"]["large"][:, 0, 3] for batch in whole]  # the height of an image names it
    assert sorted(np.concatenate(epoch)[:12]) == [20 + 9 * index for index in range(12)]
    parts = [batches(8, BUDGET, batch_size=2, process_index=index, process_count=2) for index in (0, 1)]
    resumed = batches(3, BUDGET, batch_size=4, start=starts[5])
    together = [np.concatenate([part["image"]["large"] for part in own]) for own in zip(*parts)]
    for found, expected in ((together, whole), ([batch["image"]["large"] for batch in resumed], whole[5:])):
        for own, batch in zip(found, expected, strict=True):
            np.testing.assert_array_equal(own, batch["image"]["large"])
    far = native_aspect.BLOCK + 5
    assert BUDGET.start(far) == BUDGET.start(far - 1) + BUDGET.of(far - 1).images
    assert BUDGET.number(BUDGET.start(far)) == far
