"""The table of model sizes."""

from typing import NamedTuple

from ml_collections import ConfigDict

from detailclip_jax.config.declarations import LARGEST


class Size(NamedTuple):
    """Widths and depths of all networks.

    ViT-S follows MoCo v3 (12 heads); the text encoder is CLIP's, as in all methods of SLIP's family. `mlp_width` and
    `text_mlp_width` are the hidden units of the blocks' MLPs; 0 means four times the width.
    """

    patch_size: int
    width: int
    depth: int
    num_heads: int
    text_width: int = 512
    text_depth: int = 12
    text_heads: int = 8
    joint_width: int = 512
    decoder_depth: int = 1
    decoder_heads: int = 16
    head_width: int = 2048
    bottleneck_width: int = 256
    prototypes: int = 8192
    ssl_width: int = 4096
    ssl_output: int = 256
    mlp_width: int = 0
    text_mlp_width: int = 0


SIZES = {
    "tiny": Size(8, 96, 3, 4, 64, 2, 4, 64, 1, 4, 256, 64, 256, 128, 64),
    "S/16": Size(16, 384, 12, 12),
    "B/32": Size(32, 768, 12, 12),
    "B/16": Size(16, 768, 12, 12),
    "L/16": Size(16, 1024, 24, 16),
}


CUSTOM = "custom"
MAX_DEPTH = 1000  # blocks; to build more takes hours
MAY_BE_0 = ("decoder_depth", "mlp_width", "text_mlp_width")


def size_of(model: ConfigDict) -> Size:
    """Returns the size of `config.model`: one of the table, or one with the fields of `model.custom`.

        model.size, model.custom = "custom", {"patch_size": 14, "width": 1024, "depth": 24, "num_heads": 16}

    With `model.image_is_embedding` the joint width is the image encoder's.  Raises ValueError for a name that the table
    lacks, with the names of missing or unknown fields, and for a field that cannot be such a size.
    """
    if model.size not in (*SIZES, CUSTOM):
        raise ValueError(f"model.size {model.size!r} is unknown; known: {', '.join(SIZES)}, {CUSTOM}")
    if model.size == CUSTOM:
        fields, known = set(model.custom), set(Size._fields)
        missing, unknown = known - fields - set(Size._field_defaults), fields - known
        faults = {"lacks": missing, "has the unknown fields": unknown}
        if wrong := " and ".join(f"{fault} {', '.join(sorted(names))}" for fault, names in faults.items() if names):
            raise ValueError(f"model.custom {wrong}; its fields are {', '.join(Size._fields)}")
        for name, value in model.custom.items():
            least, most = int(name not in MAY_BE_0), MAX_DEPTH if name.endswith("depth") else LARGEST
            if not isinstance(value, int) or not least <= value <= most:
                raise ValueError(f"model.custom.{name} {value!r} must be a whole number from {least} to {most}")
    size = Size(**model.custom.to_dict()) if model.size == CUSTOM else SIZES[model.size]
    return size._replace(joint_width=size.width) if model.image_is_embedding else size


def images_of_batches(config: ConfigDict) -> dict[int, int]:
    """Returns the images of a global batch by the number of patches of an image, which is 0 for squares.

        batch_size, views.native, views.native_budget = 8, (128, 576), 16384    # {128: 128, 576: 24}

    Raises ValueError if an image has so many patches that not even `batch_size` images fit into the budget.
    """
    size, views = config.batch_size, config.views
    if not views.native_budget:
        return dict.fromkeys(views.native or (0,), size)
    images = {num: views.native_budget // num // size * size for num in views.native}
    if small := [num for num, count in images.items() if not count]:
        raise ValueError(
            f"views.native_budget {views.native_budget} has no room for batch_size {size} images of {small[0]} "
            f"patches, which are {size * small[0]:,}; set a larger budget or a smaller batch_size"
        )
    return images


def mean_batch_size(config: ConfigDict) -> float:
    """Returns the images of a global batch, on average over `views.native`."""
    if not config.views.native_budget:
        return config.batch_size
    images = images_of_batches(config)
    return sum(images[num] for num in config.views.native) / len(config.views.native)


def num_side_patches(model: ConfigDict) -> int:
    """Returns the number of patches per image side; ValueError if the patch size does not divide the image size."""
    return whole_patches("model.image_size", model.image_size, size_of(model).patch_size)


def whole_patches(field: str, size: int, patch_size: int) -> int:
    """Returns the number of patches in `size` pixels; ValueError that names the field if it is not a whole number."""
    if size % patch_size:
        below = size // patch_size * patch_size
        nearest = f"{below} or {below + patch_size}" if below else f"{patch_size}"
        raise ValueError(f"{field} {size} is not a multiple of the patch size {patch_size}; set it to {nearest}")
    return size // patch_size


def num_prototypes(model: ConfigDict) -> int:
    """Returns C, the number of prototypes: `model.prototypes`, or that of the size."""
    return model.prototypes or size_of(model).prototypes
