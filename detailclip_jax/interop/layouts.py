"""The supported layouts: how to recognise one, how to infer its sizes, and its table of names.

A new layout is one new entry of LAYOUTS.
"""

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from detailclip_jax.config import CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD, reference_preset
from detailclip_jax.config.fields import AT_LAST, MEAN
from detailclip_jax.interop import (
    big_vision_names,
    clip_names,
    dino_names,
    dinotxt_names,
    huggingface,
    reference,
    timm_vit,
    tips_names,
)
from detailclip_jax.interop.key_tables import StateDict, Table
from detailclip_jax.interop.measure import (
    HEADS,
    SLIP_HEADS,
    Shapes,
    Spec,
    Tower,
    complete,
    decoder_heads,
    image_fields,
    mlp_fields,
    num_blocks,
    shape_of,
    text_fields,
)
from detailclip_jax.models.text import TextStyle
from detailclip_jax.models.vit import Style
from detailclip_jax.runtime import weight_files

WITH_CLS = ("cls", "mean", "norm_of_mean")  # poolings of encoders with a CLS token
OPENAI_STYLE = Style(norm_eps=1e-5, activation="quick_gelu", pre_norm=True, patch_bias=False)
GELU_STYLE = OPENAI_STYLE._replace(activation="gelu")
ROTARY_STYLE = Style(norm_eps=1e-5, positions="rotary")  # DINOv3's
SIGLIP_STYLE = Style(activation="gelu_tanh", pooling="attention")
TIPS_TEXT = TextStyle(causal=False, pooling=MEAN)
SIGLIP_TEXT = TextStyle(norm_eps=1e-6, causal=False, pooling=AT_LAST, projection_bias=True)
GELUS = ("gelu", "quick_gelu")  # the activations that open_clip and timm build by name
ANY = None  # of `TensorLayout.varies`: the layout has a place for any value
NORMALISATIONS = {
    "imagenet": (IMAGENET_MEAN, IMAGENET_STD),
    "clip": (CLIP_MEAN, CLIP_STD),
    # of DINOv3's SAT-493M weights: README.md of facebookresearch/dinov3, "Image transforms"
    "satellite": ((0.430, 0.411, 0.296), (0.213, 0.156, 0.143)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}


def published_aclip(config: ConfigDict) -> ConfigDict:
    """Sets the choices of A-CLIP's code: masks in cells of 2 x 2 patches, bilinear crops."""
    config.masking.granularity = "cell2x2"
    config.views.crops.large.filter = "bilinear"
    return config


def published_cosmos(config: ConfigDict) -> ConfigDict:
    """Sets the captions that the method needs: two of several sentences, six of one."""
    config.data.caption = "crops"
    return config


def published_flair(config: ConfigDict) -> ConfigDict:
    """Sets the captions that the method needs: several of one to three sentences each."""
    config.data.caption = "diverse"
    return config


class TensorLayout(NamedTuple):
    """The tensor names of one kind of model.

    `marks` are keys that only this layout and the models of `shared_with` have. `drops` are patterns of keys that
    belong to the layout but have no use in our networks. `style` and `text_activation` are those of a file that does
    not state them; `varies` lists the other values that the layout has a place for, by field of `style` and
    "text_activation". `shared_with` names a layout with the same keys: one of the two must be given.
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
    mlps: Mapping[str, str] = {}  # last layers of MLPs, whose widths are inferred, see `measure.mlp_fields`
    varies: Mapping[str, Collection[str] | None] = {}
    same_activation: bool = False  # whether both encoders have one
    normalisation: str = "imagenet"
    filter: str = "bilinear"  # evaluation default without a config file; SLIP's family: torchvision's
    crop_ratio: float = 1.0
    resize: str | None = None  # the same; None: as `config.preprocess`
    interpolation: str = "bicubic"  # of positions to other image sizes by its code, one of positions.RECIPES
    prefixes: tuple[str, ...] = ()  # removed from the keys
    roots: tuple[str, ...] = ("state_dict", "model")  # keys of the state dict in a checkpoint
    parts: tuple[str, ...] = ()  # of a checkpoint with several state dicts; their names begin our keys
    prepare: Callable[[StateDict], StateDict] = lambda tensors: tensors  # to the names and forms of the table
    stated: Callable[[Shapes], dict[str, Any]] = lambda shapes: {}  # options that the shapes show
    shared_with: str = ""
    read_only: bool = False  # whether no model is written in it
    class_tokens: int = 1  # of its image encoders
    drops: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()  # options that cannot be inferred from the tensors
    crops: Mapping[str, Mapping[str, Any]] = {}  # crops of its method in addition to "large", see config.crop
    published: Callable[[ConfigDict], ConfigDict] = lambda config: config  # sets the choices of its published code
    states_text_eps: bool = False  # whether its config states the epsilon of the text encoder's norms
    keeps_mask_ratio: bool = False  # whether its flag `mask_ratio` is the share of patches kept

    def clean(self, key: str) -> str:
        """The key without the prefixes added by wrappers."""
        for prefix in ("_orig_mod.", "module.", "_orig_mod.", *self.prefixes):
            key = key.removeprefix(prefix)
        return key

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
        fields |= self.measure_heads(shapes)
        if "decoder_depth" in fields:
            fields["decoder_heads"] = decoder_heads(fields, options.get("decoder_heads"))
        elif "decoder_heads" in options:
            raise ValueError(f"decoder_heads is given, but a model of layout {self.name!r} has no decoder; omit it")
        size = complete(fields)
        text = self._text(options), self._text_style(options), self.image_is_embedding
        style = self._style(shapes, options)
        return Spec(size, image_size, context_length, vocab_size, style, *text, class_tokens=self.class_tokens)

    def _style(self, shapes: Shapes, options: Mapping[str, Any]) -> Style:
        given = {name: options[name] for name in Style._fields if options.get(name) is not None}
        if "fc_norm.weight" in shapes:
            given["pooling"] = "norm_of_mean"
        return self.style._replace(**given)

    def _text(self, options: Mapping[str, Any]) -> str:
        return options.get("text_activation") or options.get("activation") or self.text_activation

    def _text_style(self, options: Mapping[str, Any]) -> TextStyle:
        eps = options.get("text_norm_eps")
        return self.text_style if eps is None else self.text_style._replace(norm_eps=eps)

    def holds(self, spec: Spec) -> bool:
        """Whether this layout can represent the encoders of a model."""
        return not self.refused(spec)

    def refused(self, spec: Spec) -> list[str]:
        """What this layout needs and a model has not: "pre_norm=True (here False)"; else []."""
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


def naflex_options(shapes: Shapes, kernel: str) -> dict[str, Any]:
    """Options of SigLIP 2's NaFlex, whose patch embedding `kernel` is a matrix; {} for the models of squares."""
    is_matrix = len(shapes.get(kernel, ())) == 2
    return {"resize": "native", "resize_filter": "bilinear", "interpolation": "tips"} if is_matrix else {}


def gate_options(shapes: Shapes, first: str, last: str) -> dict[str, Any]:
    """The option of an MLP with a gate, if its `first` layer has the hidden units of the `last` one twice."""
    outputs, inputs = (shapes.get(key, ()) for key in (first, last))
    return {"activation": "swiglu"} if len(inputs) == 2 and outputs[:1] == (2 * inputs[1],) else {}


def joint_width(shapes: Shapes, key: str) -> int:
    """E, from a projection stored as (in, out) or, if its key ends in `.weight`, as (out, in)."""
    return shape_of(shapes, key, 2)[0 if key.endswith(".weight") else 1]


def detailclip_heads(shapes: Shapes) -> dict[str, int]:
    """Sizes of the reference's decoder and prototype head."""
    prototypes, bottleneck_width = shape_of(shapes, "ibot_head.last_layer.weight_v", 2)
    return {
        "decoder_depth": num_blocks(shapes, "decoder_blocks"),
        "head_width": shape_of(shapes, "ibot_head.mlp.0.weight", 2)[0],
        "bottleneck_width": bottleneck_width,
        "prototypes": prototypes,
    }


def slip_heads(shapes: Shapes) -> dict[str, int]:
    """Sizes of SimCLR's head; BYOL's heads have the same widths."""
    ssl_output, ssl_width = shape_of(shapes, "image_mlp.layer3.weight", 2)
    return {"ssl_width": ssl_width, "ssl_output": ssl_output}


VIT = Tower("patch_embed.proj.weight", "pos_embed", "blocks")
SLIP = Tower("visual.patch_embed.proj.weight", "visual.pos_embed", "visual.blocks")
OPENAI = Tower("visual.conv1.weight", "visual.positional_embedding", "visual.transformer.resblocks")
COSMOS = OPENAI._replace(
    kernel="student.visual.conv1.weight",
    positions="student.visual.positional_embedding",
    blocks="student.visual.transformer.resblocks",
)
PAIR = Tower(
    f"{tips_names.VISION}.{VIT.kernel}", f"{tips_names.VISION}.{VIT.positions}", f"{tips_names.VISION}.{VIT.blocks}"
)
TRUNK = Tower("visual.trunk.patch_embed.proj.weight", "visual.trunk.pos_embed", "visual.trunk.blocks")
HF_VIT = Tower(
    "vision_model.embeddings.patch_embeddings.projection.weight",
    "vision_model.embeddings.position_embeddings",
    "vision_model.encoder.layer",
)
HF_CLIP = Tower(
    "vision_model.embeddings.patch_embedding.weight",
    "vision_model.embeddings.position_embedding.weight",
    "vision_model.encoder.layers",
)
HF_SIGLIP = HF_CLIP._replace(num_cls=0)
CLIP_TEXT = {
    "blocks": "transformer.resblocks",
    "positions": "positional_embedding",
    "token_embedding": "token_embedding.weight",
    "joint": "text_projection",
}
HF_TEXT = {
    "blocks": "text_model.encoder.layers",
    "positions": "text_model.embeddings.position_embedding.weight",
    "token_embedding": "text_model.embeddings.token_embedding.weight",
    "joint": "text_projection.weight",
}
FLAIR_TEXT = CLIP_TEXT | {"joint": clip_names.FLAIR_TEXT_PROJECTION}
COSMOS_TEXT = {name: f"{clip_names.COSMOS_STUDENT}.{key}" for name, key in CLIP_TEXT.items()}
TIPS_TEXT_KEYS = {
    name: f"{tips_names.TEXT}.{key}" for name, key in (CLIP_TEXT | {"joint": "positional_embedding"}).items()
}
DINOTXT_TEXT = {
    "blocks": f"{dinotxt_names.TEXT}.blocks",
    "positions": f"{dinotxt_names.TEXT}.positional_embedding",
    "token_embedding": f"{dinotxt_names.TEXT}.token_embedding.weight",
    "joint": dinotxt_names.TEXT_PROJECTION,
}
TIPS_TEXT_MLP = f"{tips_names.TEXT}.transformer.resblocks.0.mlp.c_proj.weight"
SIGLIP_TEXT_KEYS = {**HF_TEXT, "joint": "text_model.head.weight"}
SIGLIP_MLPS = {
    "mlp_width": "vision_model.encoder.layers.0.mlp.fc2.weight",
    "text_mlp_width": "text_model.encoder.layers.0.mlp.fc2.weight",
}
BUFFERS = ("input_resolution", "context_length", "vocab_size", r"(.*\.)?attn_mask")  # in OpenAI's archives
EVAL_256: dict[str, Any] = {"filter": "bicubic", "crop_ratio": 224 / 256}  # evaluation of DINO, iBOT and MAE
TIPS_EVAL: dict[str, Any] = {"normalisation": "none", "resize": "squash", "interpolation": "tips"}
# timm's registered defaults for its ViTs
TIMM_EVAL: dict[str, Any] = {"filter": "bicubic", "crop_ratio": 0.9, "interpolation": "timm"}
DINO_DROPS = (r"head\..*", r"masked_embed", r"(proj|pred)?_?head.*")
DINOV2_DROPS = (
    *("mask_token", r".*\.mask_token", r"(dino|ibot)_head\..*", r"(classifier|head)\..*"),
    *(r"rope_embed\.periods", r"local_cls_norm\..*"),  # of DINOv3: fixed numbers, and what local crops had in training
)
OF_TIMM = {"pooling": WITH_CLS, "positions": ("learnt", "sincos")}
DINOV3_HEADS = HEADS | {1280: 20}


def _distilled(name: str, mark: str) -> TensorLayout:
    """A ViT of DINO's family: the teacher, if the checkpoint has student and teacher."""
    encoder = TensorLayout(
        name, "image_encoder", ("cls_token", mark), VIT, timm_vit.vit_table, varies=OF_TIMM, **EVAL_256
    )
    kept = {"prefixes": ("backbone.",), "roots": ("teacher", "state_dict", "model"), "drops": DINO_DROPS}
    return encoder._replace(interpolation="ibot", **kept)


def _dinov2(names: dino_names.Names, registers: bool, gated: bool) -> TensorLayout:
    """An image encoder of DINOv2, or of DINOv3, whose positions are rotary; of a training checkpoint the teacher."""
    names = names if gated else names._replace(gated=names.mlp)  # timm's ViT-g has its gate under these names
    block, rotary = f"{names.blocks}.0", not names.positions
    style = Style(activation="swiglu" if gated else "gelu")
    usual: dict[str, Any] = {"resize": "squash"} if rotary else EVAL_256
    encoder = TensorLayout(
        names.model.lower(),
        "image_encoder",
        (
            *(names.cls_token, f"{block}.{names.gated[0]}.weight", f"{block}.{names.scales[0]}"),
            f"{block}.{names.proj}.weight",
            *([names.registers] if registers else []),
        ),
        Tower(f"{names.patches}.weight", names.positions, names.blocks),
        dino_names.table_in(names, registers),
        style=ROTARY_STYLE._replace(activation=style.activation) if rotary else style,
        heads=DINOV3_HEADS if rotary else HEADS,
        mlps={"mlp_width": f"{block}.{names.gated[-1]}.weight"},
        prepare=names.prepare,
        stated=lambda shapes: gate_options(shapes, *(f"{block}.{layer}.weight" for layer in names.mlp)),
        read_only=True,
        class_tokens=1 + dino_names.NUM_REGISTERS * registers,
        drops=DINOV2_DROPS,
        **usual,
    )
    return encoder._replace(
        prefixes=("backbone.", "dinov2.", "dinov2_with_registers.", "model."),
        roots=("teacher", *encoder.roots),
        interpolation=names.interpolations[registers],
        shared_with="tips" if registers and names.registers == dino_names.DINOV2.registers else "",
    )


def _tips(gated: bool) -> TensorLayout:
    """An image encoder of TIPS alone: DINOv2's names, and two class tokens."""
    usual = {"filter": "bilinear", "crop_ratio": 1.0, "shared_with": "dinov2"}
    return _dinov2(tips_names.NAMES, True, gated)._replace(class_tokens=2, **usual, **TIPS_EVAL)


def _tips_pair(gated: bool) -> TensorLayout:
    """Both encoders of TIPS."""
    image, keys, names = _tips(gated), tips_names.VISION, tips_names.NAMES
    marks = names.registers, *([f"{names.blocks}.0.{names.gated[0]}.weight"] if gated else [])
    return image._replace(
        method="clip",
        marks=(*(f"{keys}.{mark}" for mark in marks), f"{tips_names.TEXT}.token_embedding.weight"),
        tower=PAIR,
        table=tips_names.pair_table,
        text=TIPS_TEXT_KEYS,
        text_style=TIPS_TEXT,
        text_activation="relu",
        image_is_embedding=True,
        mlps={"mlp_width": f"{keys}.{image.mlps['mlp_width']}", "text_mlp_width": TIPS_TEXT_MLP},
        parts=weight_files.PARTS,
        prepare=tips_names.plain_pair,
        shared_with="",
        drops=(rf"{keys}\.mask_token",),
    )


def _dinotxt() -> TensorLayout:
    """The whole model of dino.txt, on DINOv3's L/16."""
    image, keys = _dinov2(dino_names.DINOV3, True, False), dinotxt_names.IMAGE
    return image._replace(
        name="dinotxt",
        method="dinotxt",
        marks=(f"{dinotxt_names.HEAD}.ln_final.weight", f"{dinotxt_names.TEXT}.token_embedding.weight"),
        tower=Tower(f"{keys}.{VIT.kernel}", "", f"{keys}.{VIT.blocks}"),
        table=dinotxt_names.table,
        text=DINOTXT_TEXT,
        text_activation="gelu",
        mlps={"mlp_width": f"{keys}.{image.mlps['mlp_width']}"},
        prepare=dinotxt_names.completed,
        stated=dinotxt_names.heads,
        prefixes=(),
        drops=tuple(rf"{keys}\.{pattern}" for pattern in DINOV2_DROPS),
        resize=None,
        **EVAL_256,
    )


OPENAI_LAYOUT = TensorLayout(
    "openai",
    "clip",
    ("visual.class_embedding", "visual.ln_pre.weight", "input_resolution"),
    OPENAI,
    clip_names.clip_table,
    CLIP_TEXT,
    style=OPENAI_STYLE,
    normalisation="clip",
    filter="bicubic",
    drops=BUFFERS,
)
TIMM_LAYOUT = TensorLayout(
    "timm",
    "image_encoder",
    ("cls_token", "blocks.0.norm1.weight"),
    VIT,
    timm_vit.vit_table,
    varies=OF_TIMM,
    drops=(r"head\.(weight|bias)",),
    **TIMM_EVAL,
)
TIMM_REGISTERS = TIMM_LAYOUT._replace(
    marks=("cls_token", timm_vit.REGISTERS, VIT.positions),
    tower=VIT._replace(num_cls=1 + dino_names.NUM_REGISTERS),
    varies={},
    class_tokens=1 + dino_names.NUM_REGISTERS,
)
SIGLIP_LAYOUT = TensorLayout(
    "huggingface",
    "siglip",
    ("vision_model.head.probe", "logit_bias"),
    HF_SIGLIP,
    huggingface.siglip_table,
    SIGLIP_TEXT_KEYS,
    style=SIGLIP_STYLE,
    text_style=SIGLIP_TEXT,
    text_activation="gelu_tanh",
    image_is_embedding=True,
    mlps=SIGLIP_MLPS,
    varies={"norm_eps": ANY, "activation": ANY, "text_activation": ANY},
    prepare=huggingface.convolved,
    stated=lambda shapes: naflex_options(shapes, HF_SIGLIP.kernel),
    normalisation="half",
    filter="bicubic",
    resize="squash",
    drops=(r".*\.position_ids",),
    states_text_eps=True,
)

LAYOUTS = (
    TensorLayout(
        "reference",
        "detailclip",
        ("visual_ema.cls_token", "ibot_head_e.mlp.0.weight"),
        SLIP,
        reference.detailclip_table,
        CLIP_TEXT,
        detailclip_heads,
        heads=SLIP_HEADS,
        published=reference_preset,
        keeps_mask_ratio=True,
    ),
    TensorLayout(
        "aclip",
        "aclip",
        ("visual_ema.cls_token", "im_proj_byol_e.0.weight"),
        SLIP,
        reference.aclip_table,
        CLIP_TEXT,
        slip_heads,
        heads=SLIP_HEADS,
        crops={"enclosing": {"kind": "enclosing"}},
        published=published_aclip,
        keeps_mask_ratio=True,
    ),
    TensorLayout(
        "flair",
        "flair",
        ("visual.class_embedding", "visual_proj.ln_v.weight", clip_names.FLAIR_IMAGE_PROJECTION),
        OPENAI,
        clip_names.flair_table,
        FLAIR_TEXT,
        style=GELU_STYLE,
        text_activation="gelu",
        normalisation="clip",
        filter="bicubic",
        interpolation="timm",
        published=published_flair,
    ),
    TensorLayout(
        "slip",
        "slip",
        ("visual.cls_token", "image_mlp.layer1.weight"),
        SLIP,
        reference.slip_table,
        CLIP_TEXT,
        slip_heads,
        heads=SLIP_HEADS,
        crops={"clean": {}},
    ),
    TensorLayout(
        "clip",
        "clip",
        ("visual.cls_token", "image_projection"),
        SLIP,
        reference.clip_table,
        CLIP_TEXT,
        heads=SLIP_HEADS,
    ),
    OPENAI_LAYOUT._replace(
        name="longclip",
        marks=("visual.class_embedding", "visual.ln_pre.weight", clip_names.LATER_POSITIONS),
        prepare=clip_names.joined_positions,
        read_only=True,
    ),
    OPENAI_LAYOUT,
    TensorLayout(
        "open_clip",
        "clip",
        ("visual.class_embedding", "visual.ln_pre.weight"),
        OPENAI,
        clip_names.clip_table,
        CLIP_TEXT,
        style=OPENAI_STYLE,
        varies={"activation": GELUS, "text_activation": GELUS, "pooling": WITH_CLS},
        same_activation=True,
        normalisation="clip",
        filter="bicubic",
        interpolation="timm",
        needs=("activation",),
    ),
    TensorLayout(
        "cosmos",
        "cosmos",
        ("student.visual.class_embedding", "student.visual.attn_cross_pool.ln_q.weight", "teacher.visual.proj"),
        COSMOS,
        clip_names.cosmos_table,
        COSMOS_TEXT,
        style=GELU_STYLE,
        text_activation="gelu",
        normalisation="clip",
        filter="bicubic",
        interpolation="ibot",
        parts=clip_names.COSMOS_PARTS,
        drops=tuple(rf"{clip_names.COSMOS_TEACHER}\.{name}" for name in clip_names.COSMOS_UNUSED),
        published=published_cosmos,
    ),
    TensorLayout(
        "open_clip",
        "clip",
        ("visual.trunk.cls_token", "visual.head.proj.weight"),
        TRUNK,
        clip_names.timm_tower_table,
        CLIP_TEXT,
        varies={"pooling": ("cls", "mean"), "text_activation": GELUS},
        normalisation="clip",
        filter="bicubic",
        interpolation="timm",
        needs=("text_activation",),
    ),
    TensorLayout(
        "huggingface",
        "clip",
        ("vision_model.embeddings.cls_token", "text_model.encoder.layers.0.layer_norm1.weight"),
        HF_VIT,
        huggingface.dual_encoder_table,
        HF_TEXT,
        varies={"norm_eps": ANY, "activation": ANY, "text_activation": ANY},
        needs=("text_activation",),
        states_text_eps=True,
    ),
    TensorLayout(
        "huggingface",
        "clip",
        ("vision_model.embeddings.class_embedding", "text_model.encoder.layers.0.layer_norm1.weight"),
        HF_CLIP,
        huggingface.clip_table,
        HF_TEXT,
        style=OPENAI_STYLE,
        varies={"norm_eps": ANY, "activation": ANY, "text_activation": ANY},
        normalisation="clip",
        filter="bicubic",
        drops=(r".*\.position_ids",),
        needs=("activation",),
        states_text_eps=True,
    ),
    SIGLIP_LAYOUT,
    SIGLIP_LAYOUT._replace(
        name="big_vision",
        marks=(big_vision_names.KERNEL, big_vision_names.WORDS),
        prefixes=("params/",),
        prepare=big_vision_names.as_siglip,
        stated=lambda s: naflex_options(s, big_vision_names.KERNEL) | big_vision_names.heads(s),
        read_only=True,
        filter="bilinear",
    ),
    *(_tips_pair(gated) for gated in (True, False)),
    _dinotxt(),
    *(_tips(gated) for gated in (True, False)),
    TensorLayout(
        "mae",
        "image_encoder",
        ("cls_token", "mask_token", "decoder_embed.weight"),
        VIT,
        timm_vit.vit_table,
        varies=OF_TIMM,
        drops=(r"decoder_.*", "mask_token"),
        **EVAL_256,
    ),
    *(_dinov2(names, True, gated) for names in (dino_names.HF_DINOV3, dino_names.DINOV3) for gated in (True, False)),
    *(
        _dinov2(names, True, gated)._replace(name="timm", resize=None, **TIMM_EVAL | {"crop_ratio": 1.0})
        for names, gated in (
            (dino_names.TIMM_DINOV2, False),
            (dino_names.TIMM_DINOV3, True),
            (dino_names.TIMM_DINOV3, False),
        )
    ),
    *(
        _dinov2(names, registers, gated)
        for names in (dino_names.HF_DINOV2, dino_names.HF_MODULE_DINOV2, dino_names.DINOV2)
        for registers in (True, False)
        for gated in (True, False)
    ),
    _distilled("ibot", "masked_embed"),
    _distilled("dino", "head.last_layer.weight_v"),
    TensorLayout(
        "timm",
        "image_encoder",
        ("cls_token", "norm_pre.weight"),
        VIT,
        timm_vit.vit_table,
        style=OPENAI_STYLE,
        varies={"activation": GELUS},
        normalisation="clip",
        drops=(r"head\.(weight|bias)",),
        needs=("activation",),
        **TIMM_EVAL,
    ),
    TIMM_REGISTERS,
    TIMM_REGISTERS._replace(
        marks=("cls_token", timm_vit.REGISTERS, timm_vit.SCALE),
        tower=VIT._replace(positions=""),
        style=ROTARY_STYLE,
    ),
    TIMM_LAYOUT,
)
