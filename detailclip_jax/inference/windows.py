"""Windows of one image, and the matrices that combine their maps: encode windows, average overlaps, resize.

Bilinear resizing and averaging are linear, and act on rows and columns separately. The map of an image is therefore

    map = rows @ maps_of_windows @ columns.T        # [H, ny h] @ [ny h, nx w] @ [nx w, W] for ny x nx windows

with one matrix per axis, which `axis` builds.
"""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Shaped


class Places(NamedTuple):
    """The windows along one axis of `length` pixels.

    Every window covers `extent` pixels, from one of `starts`; the encoder sees `seen` pixels, a whole number of
    patches: the first of the window, or all of them between `before` and further pixels of padding.
    """

    starts: tuple[int, ...]
    extent: int
    seen: int
    before: int
    length: int

    @property
    def pads(self) -> bool:
        """Whether the windows are padded to a whole number of patches."""
        return self.seen > self.extent


class Axis(NamedTuple):
    """The windows along one axis of a resized image, and the matrix from their patches to the output."""

    places: Places
    matrix: Float32[np.ndarray, "out M"]  # M = windows x patches


def axis(length: int, out: int, patch_size: int, window: int | None, stride: int, pad: bool) -> Axis:
    """Places windows on an axis of `length` pixels whose output has `out` pixels; see `places` and `assembly`.

    The patches of a window are resized bilinearly to it, overlaps are averaged, and the result is resized bilinearly
    to `out`. Without a `window` the patches of the whole image are resized to `out` at once.
    """
    placed = places(length, patch_size, window, stride, pad)
    patches = placed.seen // patch_size
    if window is None and not (pad or placed.pads):
        return Axis(placed, bilinear_matrix(patches, out))
    return Axis(placed, assembly(placed, patches, out))


def places(length: int, patch_size: int, window: int | None, stride: int, pad: bool) -> Places:
    """Places windows of `window` pixels (None: one window, the image) on an axis of `length` pixels.

    Windows start every `stride` pixels; the last one is moved inwards to end at the border. An image shorter than the
    window is one window.

    places(683, 16, 512, 341, False) == Places(starts=(0, 171), extent=512, seen=512, before=0, length=683)

    `pad`: an incomplete last patch is completed, with equal padding at both ends; otherwise its pixels are not used,
    and the map of the other patches is stretched over the window. An axis shorter than a patch is always padded.
    """
    extent = length if window is None else min(window, length)
    pad = pad or extent < patch_size
    seen = (-(-extent // patch_size) if pad else extent // patch_size) * patch_size
    return Places(window_starts(length, extent, stride), extent, seen, max(seen - extent, 0) // 2, length)


def assembly(placed: Places, cells: int, out: int, sums: Any = np.float32) -> Float32[np.ndarray, "out M"]:
    """Builds the matrix from the maps of all windows, `cells` long each, to `out` pixels, with sums of type `sums`.

    The cells of a window cover the `seen` pixels if the window is padded, else its `extent`.
    """
    inside = window_matrix(placed, cells).astype(sums)
    resized = bilinear_matrix(placed.length, out).astype(sums) @ averaged(inside, placed.starts, placed.length)
    return resized.astype(np.float32)


def window_matrix(placed: Places, cells: int) -> Float32[np.ndarray, "E p"]:
    """Builds the matrix from the map of one window, `cells` long, to its pixels, without those of the padding."""
    covered = bilinear_matrix(cells, placed.seen if placed.pads else placed.extent)
    return covered[placed.before : placed.before + placed.extent]


def window_starts(length: int, extent: int, stride: int) -> tuple[int, ...]:
    """The first pixel of each window: every `stride` pixels, until one reaches the end, which is moved to end there."""
    count = -(-max(length - extent, 0) // stride) + 1
    return tuple(min(number * stride, length - extent) for number in range(count))


def averaged(inside: Float[np.ndarray, "E p"], starts: Sequence[int], length: int) -> Float[np.ndarray, "L M"]:
    """The matrix from the patches of all windows to pixels; a pixel in several windows gets the mean of its values."""
    extent, patches = inside.shape
    matrix, count = np.zeros((length, len(starts) * patches), inside.dtype), np.zeros((length, 1), inside.dtype)
    for number, start in enumerate(starts):
        matrix[start : start + extent, number * patches : (number + 1) * patches] = inside
        count[start : start + extent] += 1
    return matrix / count


def bilinear_matrix(old: int, new: int) -> Float32[np.ndarray, "new old"]:
    """Builds the bilinear resize matrix of one axis, as in PyTorch's interpolate(mode="bilinear").

    New pixel i has its centre at (i + 1/2) old / new - 1/2, clamped to the image.  Not antialiased.
    """
    centre = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    return np.maximum(0, 1 - np.abs(centre[:, None] - np.arange(old))).astype(np.float32)


def cut(image: Shaped[np.ndarray, "H W 3"], down: Axis, across: Axis) -> list[Shaped[np.ndarray, "h w 3"]]:
    """The windows of an image, row by row. Pixels of an incomplete patch are cut off, unless the axis pads."""
    rows, columns = down.places, across.places
    height, width = (min(each.seen, each.extent) for each in (rows, columns))
    return [image[top : top + height, left : left + width] for top in rows.starts for left in columns.starts]


def combine(maps: Float[np.ndarray, "n h w T"], down: Axis, across: Axis) -> Float32[np.ndarray, "T H W"]:
    """The map of an image from the maps of its windows, in the order of `cut`."""
    height, width, num = maps.shape[1:]
    ny, nx = len(down.places.starts), len(across.places.starts)
    grid = maps.reshape(ny, nx, height, width, num).swapaxes(1, 2)
    rows = down.matrix @ np.ascontiguousarray(grid, np.float32).reshape(ny * height, -1)
    rows = rows.reshape(len(down.matrix), nx * width, num).transpose(2, 0, 1)
    return np.ascontiguousarray(rows) @ across.matrix.T


def combine_shares(maps: Float[np.ndarray, "n h w T"], down: Axis, across: Axis) -> Float32[np.ndarray, "T H W"]:
    """The mean over windows of the softmax over the T maps, at every pixel of a window; resized bilinearly at the end.

    In contrast to `combine` the softmax is taken in each window, before overlaps are averaged.
    """
    rows, columns = down.places, across.places
    to_rows, to_columns = window_matrix(rows, maps.shape[1]), window_matrix(columns, maps.shape[2])
    total = np.zeros((maps.shape[-1], rows.length, columns.length), np.float32)
    count = np.zeros(total.shape[1:], np.float32)
    for map_of_window, (top, left) in zip(maps, itertools.product(rows.starts, columns.starts)):
        shares = to_rows @ map_of_window.astype(np.float32).transpose(2, 0, 1) @ to_columns.T
        shares = np.exp(shares - shares.max(0, initial=-np.inf))
        place = np.s_[top : top + rows.extent, left : left + columns.extent]
        total[:, *place] += shares / shares.sum(0)
        count[place] += 1
    total /= count
    resize_rows, resize_columns = (bilinear_matrix(one.places.length, len(one.matrix)) for one in (down, across))
    return resize_rows @ total @ resize_columns.T
