"""Infers the sizes of a model from the shapes of its tensors, and converts them from and to our config."""

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from absl import logging
from ml_collections import ConfigDict

from detailclip_jax.config.sizes import CUSTOM, SIZES, Size, size_of
from detailclip_jax.models.text_encoder import TextStyle
from detailclip_jax.models.vit import INITIAL, Style

Shapes = Mapping[str, tuple[int, ...]]
# The usual number of heads of ViTs and text encoders, by width.
HEADS = {192: 3, 384: 6, 512: 8, 640: 10, 768: 12, 1024: 16, 1152: 16, 1280: 16, 1536: 24}
SLIP_HEADS = HEADS | {384: 12}  # SLIP's ViT-S is that of MoCo v3
ROTARY_SIDE = 14  # patches along a side of images of DINOv3's usual size
SMALL_HEADS = 4  # for encoders too narrow for heads of width 64, as in size "tiny"


@dataclasses.dataclass(frozen=True)
class Spec:
    """The sizes of a model, as needed by a layout's table and by our config."""

    size: Size
    image_size: int
    context_length: int
    vocab_size: int
    style: Style = Style()  # noqa: RUF009  # a NamedTuple: immutable
    text_activation: str = "quick_gelu"
    text_style: TextStyle = TextStyle()  # noqa: RUF009
    image_is_embedding: bool = False
    class_tokens: int = 1  # and registers


class Tower(NamedTuple):
    """The keys from which the size of a timm-like image encoder is inferred, and its number of CLS tokens.

    Rotary positions have no tensor, so `positions` is empty.
    """

    kernel: str
    positions: str
    blocks: str
    num_cls: int = 1

    def within(self, part: str) -> "Tower":
        """The same keys in a checkpoint with several state dicts."""
        positions = f"{part}.{self.positions}" if self.positions else ""
        return Tower(f"{part}.{self.kernel}", positions, f"{part}.{self.blocks}", self.num_cls)


def num_blocks(keys: Iterable[str], prefix: str) -> int:
    """The number of blocks `prefix`.0, `prefix`.1, ...; raises ValueError if there are none."""
    numbers = (re.match(rf"{re.escape(prefix)}\.(\d+)\.", key) for key in keys)
    blocks = {number[1] for number in numbers if number}
    if not blocks:
        raise ValueError(f"the state dict has no tensors {prefix}.0..., by which the blocks are counted")
    return len(blocks)


def shape_of(shapes: Shapes, key: str, rank: int) -> tuple[int, ...]:
    """The shape of a tensor; raises ValueError if it is missing or has another rank."""
    if key not in shapes:
        raise ValueError(f"the state dict lacks {key}, from which the sizes are read")
    if len(shapes[key]) != rank:
        raise ValueError(f"{key} has shape {shapes[key]}; expected {rank} axes")
    return shapes[key]


def image_fields(
    shapes: Shapes, tower: Tower, heads: Any, habit: Mapping[int, int] = HEADS
) -> tuple[dict[str, int], int]:
    """Fields of a Size, and the side of the image in pixels; rotary positions do not show it, so it is DINOv3's."""
    width, channels, patch_size, across = shape_of(shapes, tower.kernel, 4)
    if channels != 3 or patch_size != across or not patch_size:
        raise ValueError(f"{tower.kernel} has shape {shapes[tower.kernel]}; expected (width, 3, patch, patch)")
    side = _side(shapes, tower) if tower.positions else ROTARY_SIDE
    depth = num_blocks(shapes, tower.blocks)
    fields = {
        "patch_size": patch_size,
        "width": width,
        "depth": depth,
        "num_heads": heads_of(width, heads, "num_heads", habit),
    }
    return fields, side * patch_size


def _side(shapes: Shapes, tower: Tower) -> int:
    """The patches along a side of the image, from the table of positions."""
    if tower.positions not in shapes:
        raise ValueError(f"the state dict lacks {tower.positions}, from which the sizes are read")
    num_tokens = shapes[tower.positions][-2] if len(shapes[tower.positions]) > 1 else 0
    num_patches = max(num_tokens - tower.num_cls, 0)
    side = math.isqrt(num_patches)
    if not side or side**2 != num_patches:
        expected = "a CLS token and a square of patches" if tower.num_cls else "a square of patches"
        raise ValueError(f"{tower.positions} has shape {shapes[tower.positions]}; expected {expected}")
    return side


def text_fields(shapes: Shapes, keys: Mapping[str, str], heads: Any) -> tuple[dict[str, int], int, int]:
    """Fields of a Size, the context length and the vocabulary; `keys` names blocks, positions and token_embedding."""
    length, width = shape_of(shapes, keys["positions"], 2)
    vocab_size, _ = shape_of(shapes, keys["token_embedding"], 2)
    depth = num_blocks(shapes, keys["blocks"])
    fields = {"text_width": width, "text_depth": depth, "text_heads": heads_of(width, heads, "text_heads")}
    return fields, length, vocab_size


def heads_of(width: int, count: Any, name: str, habit: Mapping[int, int] = HEADS) -> int:
    """The number of heads, which cannot be inferred from shapes: as stated, or the usual number for the width.

    `count` is what the user or a config file states, of any type. Raises ValueError for a width without a usual number,
    a number of heads that is not an integer above 0, and a width that is not a multiple of it.
    """
    if count is None:
        if width not in habit and width >= min(habit):
            raise ValueError(
                f"the number of heads of an encoder of width {width} cannot be inferred from the tensors; "
                f"give {_flag(name)}"
            )
        count = habit.get(width, SMALL_HEADS)
        if width not in habit:
            logging.warning(
                "%s %d assumed for an encoder of width %d; the tensors do not show it; give %s",
                name,
                count,
                width,
                _flag(name),
            )
    if not isinstance(count, int) or count < 1:
        raise ValueError(f"{name} {count!r} must be a whole number, 1 or more; give {_flag(name)}")
    if width % count:
        raise ValueError(f"{name} {count} does not divide the width {width}")
    return count


def _flag(name: str) -> str:
    return f"{name} (--{name.replace('_', '-')})"


def mlp_fields(shapes: Shapes, keys: Mapping[str, str]) -> dict[str, int]:
    """The hidden units of the MLPs, by the fields of a Size; 0 for four times the width, as Size has it.

    `keys` maps the fields "mlp_width" and "text_mlp_width" to the last layer (out, in) of an MLP.
    """
    last = {name: shape_of(shapes, key, 2) for name, key in keys.items()}
    return {name: 0 if hidden == 4 * width else hidden for name, (width, hidden) in last.items()}


def decoder_heads(fields: Mapping[str, int], count: Any) -> int:
    """The number of heads of a decoder as wide as the image encoder: as stated, or that of the inferred size.

    Raises ValueError if the width is not a multiple of it.
    """
    heads = complete(fields).decoder_heads if count is None else count
    if count is None:
        logging.warning("decoder_heads %d assumed: it cannot be inferred from the tensors; give --decoder-heads", heads)
    if not isinstance(heads, int) or heads < 1 or fields["width"] % heads:
        raise ValueError(f"decoder_heads {heads} does not divide the width {fields['width']}; give --decoder-heads")
    return heads


def complete(fields: Mapping[str, int]) -> Size:
    """A Size from the known fields; the others are those of a listed size that agrees, or of a default size."""
    for size in SIZES.values():
        if size._replace(**fields) == size:
            return size
    usual = SIZES["tiny"] if fields["width"] < min(HEADS) else SIZES["B/16"]
    return usual._replace(**fields)


def spec_of(model: ConfigDict) -> Spec:
    """The Spec of `config.model`."""
    size = size_of(model)
    size = size._replace(
        decoder_depth=model.decoder_depth or size.decoder_depth, prototypes=model.prototypes or size.prototypes
    )
    style = Style(**{name: value for name, value in model.image_style.items() if name not in INITIAL})
    text = model.text_activation, TextStyle(**model.text_style), model.image_is_embedding
    return Spec(
        size, model.image_size, model.context_length, model.vocab_size, style, *text, class_tokens=model.class_tokens
    )


def write_spec(spec: Spec, model: ConfigDict) -> None:
    """Writes a Spec to `config.model`: by the name of its size if it is listed, else field by field."""
    names = [name for name, size in SIZES.items() if size == spec.size]
    fields: dict[str, Any] = {
        "size": names[0] if names else CUSTOM,
        "custom": ConfigDict({} if names else spec.size._asdict()),
        "image_size": spec.image_size,
        "context_length": spec.context_length,
        "vocab_size": spec.vocab_size,
        "image_style": ConfigDict(spec.style._asdict()),
        "text_activation": spec.text_activation,
        "text_style": ConfigDict(spec.text_style._asdict()),
        "image_is_embedding": spec.image_is_embedding,
    }
    for name, value in fields.items():
        model[name] = value
