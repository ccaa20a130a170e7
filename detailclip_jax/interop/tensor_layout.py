"""What a layout of tensors declares: how it is recognised and measured, its table of names, its usual options."""

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from detailclip_jax.config import CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD
from detailclip_jax.interop.key_tables import StateDict, Table
from detailclip_jax.interop.model_sizes import (
    HEADS,
    Shapes,
    Spec,
    Tower,
    complete,
    decoder_heads,
    image_fields,
    mlp_fields,
    shape_of,
    text_fields,
)
from detailclip_jax.models.text_encoder import TextStyle
from detailclip_jax.models.vit import Style

WITH_CLS = ("cls", "mean", "norm_of_mean")  # poolings of encoders with a CLS token
GELUS = ("gelu", "quick_gelu")  # the activations that open_clip and timm build by name
ANY = None  # of `TensorLayout.varies`: the layout has a place for any value
EVAL_256: dict[str, Any] = {"filter": "bicubic", "crop_ratio": 224 / 256}  # evaluation of DINO, iBOT and MAE
NORMALISATIONS = {
    "imagenet": (IMAGENET_MEAN, IMAGENET_STD),
    "clip": (CLIP_MEAN, CLIP_STD),
    # of DINOv3's SAT-493M weights: README.md of facebookresearch/dinov3, "Image transforms"
    "satellite": ((0.430, 0.411, 0.296), (0.213, 0.156, 0.143)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}


class TensorLayout(NamedTuple):
    """The tensor names of one kind of model.

    `marks` are keys that only this layout has; `lacks` are keys that it has not.
    `drops` are patterns of keys that belong to the layout but have no use in our networks. `style` and
    `text_activation` are those of a file that does not state them; `varies` lists the other values that the layout has
    a place for, by field of `style` and "text_activation". `registers` is the key of the class tokens after the first.
    """

    name: str
    method: str
    marks: tuple[str, ...]
    tower: Tower
    table: Callable[[Spec], Table]
    text: Mapping[str, str] | None = None  # keys: blocks, positions, token_embedding, joint
    measure_heads: Callable[[Shapes], dict[str, int]] = lambda shapes: {}
    heads: Mapping[int, int] = HEADS  # of its image encoders, by width
    style: Style = Style()
    text_style: TextStyle = TextStyle()
    text_activation: str = "quick_gelu"
    image_is_embedding: bool = False
    mlps: Mapping[str, str] = {}  # last layers of MLPs, whose widths are inferred, see `model_sizes.mlp_fields`
    varies: Mapping[str, Collection[str] | None] = {}
    same_activation: bool = False  # whether both encoders have one
    normalisation: str = "imagenet"
    filter: str = "bilinear"  # evaluation default without a config file; SLIP's family: torchvision's
    crop_ratio: float = 1.0
    resize: str | None = None  # the same; None: as `config.preprocess`
    interpolation: str = "bicubic"  # of positions to other image sizes by its code, one of positions.RECIPES
    prefixes: tuple[str, ...] = ()  # removed from the keys
    roots: tuple[str, ...] = ("state_dict", "model", "model_state_dict")  # keys of the state dict in a checkpoint
    parts: tuple[str, ...] = ()  # of a checkpoint with several state dicts; their names begin our keys
    prepare: Callable[[StateDict], StateDict] = lambda tensors: tensors  # to the names and forms of the table
    stated: Callable[[Shapes], dict[str, Any]] = lambda shapes: {}  # options that the shapes show
    read_only: bool = False  # whether no model is written in it
    class_tokens: int = 1  # of its image encoders
    registers: str = ""
    drops: tuple[str, ...] = ()
    lacks: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()  # options that cannot be inferred from the tensors
    crops: Mapping[str, Mapping[str, Any]] = {}  # crops of its method in addition to "large", see config.crop
    published: Callable[[ConfigDict], ConfigDict] = lambda config: config  # sets the choices of its published code
    states_text_eps: bool = False  # whether its config states the epsilon of the text encoder's norms
    keeps_mask_ratio: bool = False  # whether its flag `mask_ratio` is the share of patches kept
    long_texts: str = ""  # the layout that takes the long text side of the same tensors, where they have one

    def clean(self, key: str) -> str:
        """The key without the prefixes added by wrappers."""
        for prefix in ("_orig_mod.", "module.", "_orig_mod.", *self.prefixes):
            key = key.removeprefix(prefix)
        return key

    def fits(self, keys: Collection[str]) -> bool:
        """Whether the keys of a state dict are this layout's."""
        return all(mark in keys for mark in self.marks) and not any(key in keys for key in self.lacks)

    def counts_registers(self, tensors: Mapping[str, Any]) -> bool:
        """Whether the state dict has as many class tokens after the first as this layout: TIPS one, DINOv2 four."""
        rows = getattr(tensors.get(self.registers), "shape", ())[-2:-1]
        return not rows or rows[0] == self.class_tokens - 1

    def drops_key(self, key: str) -> bool:
        """Whether the tensor has no use in our networks."""
        return any(re.fullmatch(pattern, key) for pattern in self.drops)

    def measure(self, shapes: Shapes, options: Mapping[str, Any]) -> Spec:
        """The sizes of a model in this layout; raises ValueError that names a missing or wrongly shaped tensor."""
        fields, image_size = image_fields(shapes, self.tower, options.get("num_heads"), self.heads)
        fields |= mlp_fields(shapes, self.mlps)
        context_length, vocab_size = 77, 49408
        if self.text:
            of_text, context_length, vocab_size = text_fields(shapes, self.text, options.get("text_heads"))
            fields |= of_text | {"joint_width": joint_width(shapes, self.text["joint"])}
            if self.image_is_embedding and fields["joint_width"] != fields["width"]:
                joint, width = fields["joint_width"], fields["width"]
                raise ValueError(
                    f"{self.text['joint']} is for embeddings of width {joint}; expected {width}, the image encoder's"
                )
        for name in ("depth", "text_depth"):  # a config file states them
            if name in fields and (stated := options.get(name, fields[name])) != fields[name]:
                raise ValueError(f"{name} {stated} in the config beside the weights, which have {fields[name]} blocks")
        fields |= self.measure_heads(shapes)
        if "decoder_depth" in fields:
            fields["decoder_heads"] = decoder_heads(fields, options.get("decoder_heads"))
        elif "decoder_heads" in options:
            raise ValueError(f"decoder_heads is given, but a model of layout {self.name!r} has no decoder; omit it")
        options = {name: value for name, value in options.items() if value is not None}
        pooling = options.get("pooling", self.style.pooling)
        if self.style.has_pool and pooling != self.style.pooling:
            raise ValueError(f"pooling {pooling!r}: a model of layout {self.name!r} has an attention pool; omit it")
        style = {"pooling": "norm_of_mean"} if "fc_norm.weight" in shapes else {}
        style = {name: options[name] for name in Style._fields if name in options} | style
        eps = {"norm_eps": options["text_norm_eps"]} if "text_norm_eps" in options else {}
        return Spec(
            complete(fields),
            image_size,
            context_length,
            vocab_size,
            self.style._replace(**style),
            options.get("text_activation") or options.get("activation") or self.text_activation,
            self.text_style._replace(**eps),
            self.image_is_embedding,
            self.class_tokens,
        )

    def refused(self, spec: Spec) -> list[str]:
        """What this layout needs and a model has not, as "pre_norm=True (here False)"; [] if the layout fits."""
        usual, here = self.style._asdict(), spec.style._asdict()
        wrong = [name for name, value in here.items() if value != usual[name] and not self._allows(name, value)]
        needs = [f"{name}={usual[name]!r} (here {here[name]!r})" for name in wrong]
        text, activation = spec.text_activation, spec.style.activation
        if self.text and text != self.text_activation and not self._allows("text_activation", text):
            needs.append(f"a text encoder with {self.text_activation} (here {text})")
        if self.same_activation and activation != text:
            needs.append(f"one activation for both encoders (here {activation}, {text})")
        eps = {"norm_eps": self.text_style.norm_eps} if self.states_text_eps else {}
        if self.text and spec.text_style._replace(**eps) != self.text_style:
            needs.append(f"{self.text_style} (here {spec.text_style})")
        if self.image_is_embedding and not spec.image_is_embedding:
            needs.append("an image encoder without a projection")
        if spec.class_tokens != self.class_tokens:
            needs.append(f"model.class_tokens={self.class_tokens} (here {spec.class_tokens})")
        if not self.mlps and spec.size.mlp_width + spec.size.text_mlp_width:
            needs.append("MLPs of four times the width")
        if activation == "swiglu":
            needs.append("MLPs without a gate (here swiglu)")
        return needs

    def _allows(self, name: str, value: Any) -> bool:
        allowed = self.varies.get(name, ())
        return allowed is ANY or value in allowed


def joint_width(shapes: Shapes, key: str) -> int:
    """E, from a projection stored as (in, out) or, if its key ends in `.weight`, as (out, in)."""
    return shape_of(shapes, key, 2)[0 if key.endswith(".weight") else 1]
