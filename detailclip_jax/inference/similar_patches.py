"""What patch features show: which patches are like a chosen one, and their principal components as colours.

patches = model.features(images).patches                  # [B, h, w, D]
similarity(patches, places=[(3, 4)] * len(patches))       # [B, h, w], cosines with the patch of row 3, column 4
pca_colours(patches)                                      # [B, h, w, 3], components that the images share
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Float32

TAILS = 0.01  # share of the values at either end of a component that is clipped, so that outliers take no colour


def similarity(
    patches: Float[np.ndarray, "B h w D"], places: Sequence[tuple[int, int]]
) -> Float32[np.ndarray, "B h w"]:
    """The cosine of each patch feature with that of the patch at (row, column), one place per image.

    Raises ValueError for a place outside the grid, and for another number of places than of images.
    """
    rows, columns = patches.shape[1:3]
    if len(places) != len(patches):
        raise ValueError(f"{len(places)} places for {len(patches)} images: give one (row, column) for each image")
    for row, column in places:
        if not (0 <= row < rows and 0 <= column < columns):
            raise ValueError(
                f"patch {row},{column} is outside the grid of {rows} x {columns} patches; rows are 0 to {rows - 1}, "
                f"columns 0 to {columns - 1}"
            )
    unit = patches / np.maximum(np.linalg.norm(patches, axis=-1, keepdims=True), 1e-12)
    chosen = np.stack([image[tuple(place)] for image, place in zip(unit, places)])
    return np.einsum("bhwd,bd->bhw", unit, chosen).astype(np.float32)


def pca_colours(patches: Float[np.ndarray, "*batch D"]) -> Float32[np.ndarray, "*batch 3"]:
    """The first three principal components of all patch features together, each scaled to 0-1, as red, green, blue.

    The components belong to all these features: equal colours of two images mean similar features. A component's sign
    is such that its entry of largest magnitude is positive. The scale runs from the 1st to the 99th percentile.
    """
    flat = patches.reshape(-1, patches.shape[-1]).astype(np.float64)
    scores = principal_components(flat - flat.mean(0), 3)
    low, high = np.quantile(scores, [TAILS, 1 - TAILS], axis=0)
    scaled = np.clip((scores - low) / np.maximum(high - low, 1e-12), 0, 1)
    return scaled.astype(np.float32).reshape(*patches.shape[:-1], 3)


def principal_components(centred: Float[np.ndarray, "M D"], count: int) -> Float[np.ndarray, "M count"]:
    """The features along their first `count` principal axes; 0 for axes that do not exist."""
    *_, axes = np.linalg.svd(centred, full_matrices=False)
    axes = axes[:count]
    axes = axes * np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(1)])[:, None]
    return np.pad(centred @ axes.T, ((0, 0), (0, count - len(axes))))
