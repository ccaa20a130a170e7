"""The config files stored with weights of open_clip, timm and transformers: writes ours, reads theirs.

Tables say what the other library calls our options and their values; writing and reading use the same ones.
"""

import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from detailclip_jax.data.preprocessing import transform_of
from detailclip_jax.data.tokenizer import VOCAB_SIZE
from detailclip_jax.interop import hub_vocabulary
from detailclip_jax.interop.model_sizes import Spec, spec_of
from detailclip_jax.models.positions import ROTARY_BASE
from detailclip_jax.models.vit import Style
from detailclip_jax.runtime import weight_files
from detailclip_jax.runtime.files import read_json
from detailclip_jax.training import workdirs

OPEN_CLIP, HUGGINGFACE = "open_clip_config.json", "config.json"
PREPROCESSOR, PROCESSOR = "preprocessor_config.json", "processor_config.json"
PIL_FILTERS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # index: the number in `resample`
TIMM = {  # patch, width, depth, heads -> architecture registered by timm, all at 224 px
    (16, 192, 12, 3): "vit_tiny_patch16_224",
    (16, 384, 12, 6): "vit_small_patch16_224",
    (16, 768, 12, 12): "vit_base_patch16_224",
    (32, 768, 12, 12): "vit_base_patch32_224",
    (16, 1024, 24, 16): "vit_large_patch16_224",
}
TIMM_MARKS = {"quick_gelu": "_clip_quickgelu_", "gelu": "_clip_"}  # of ViTs with a norm before the blocks
# Beginnings of the names of timm's SigLIPs with the tanh form of GELU; the others have the exact one.
TIMM_TANH = ("vit_base_patch32_siglip", "vit_giantopt", "vit_large_patch16_siglip_512", "vit_so400m_patch16_siglip")
TIMM_POOLINGS = {
    "cls": {"global_pool": "token"},
    "mean": {"global_pool": "avg", "fc_norm": False},
    "norm_of_mean": {"global_pool": "avg", "fc_norm": True},
}
OPEN_CLIP_POOLINGS = {  # of its own image encoders
    "norm_of_mean": {"pool_type": "avg", "final_ln_after_pool": True},
    "mean": {"pool_type": "avg"},
    "cls": {"pool_type": "tok"},
}
TRUNK_POOLINGS = {"mean": {"timm_pool": "avg"}, "cls": {"timm_pool": "token"}}  # of those that it takes from timm
TIMM_ROTARY = "vit_base_patch16_dinov3_qkvb"  # DINOv3
# The value of `initializer_factor`, a number that CLIPModel's image config reads and ViTModel's lacks. A text makes
# CLIPModel fail, which would otherwise load only the text encoder, warn, and initialise the image encoder at random.
NO_CLIP = "this is a VisionTextDualEncoderModel, not a CLIPModel; load it with transformers.AutoModel"
HIDDEN_ACTS = {"gelu_tanh": "gelu_pytorch_tanh"}  # our names of activations, where transformers has others
TRUNK = "trunk"  # folder with the config of an image encoder that timm does not register
LOCAL = "local-dir:"  # begins a timm_model_name that is a folder
SIGLIP, NAFLEX, DUAL_ENCODER = "siglip", "siglip2", "vision-text-dual-encoder"
DINO_KINDS = ("dinov2", "dinov2_with_registers", "dinov3_vit")  # model_type of image encoders alone
METACLIP_2, TIPS_2, FG_CLIP_2 = "metaclip_2", "tipsv2", "fgclip2"
SIGLIPS = (SIGLIP, "siglip_model", NAFLEX, FG_CLIP_2)
KINDS = (None, "clip", METACLIP_2, TIPS_2, *SIGLIPS, DUAL_ENCODER)  # supported model_type of a config.json
TEXT_KINDS = (None, "clip_text_model", "metaclip_2_text_model")
OWN_VOCABULARY = (METACLIP_2, TIPS_2, *SIGLIPS)  # kinds whose tokenizer.json is part of the model
CLIP_USUAL, VIT_USUAL, SIGLIP_USUAL = (  # activation and epsilon of transformers, for a config.json without them
    ("quick_gelu", 1e-5),
    ("gelu", 1e-12),
    ("gelu_pytorch_tanh", 1e-6),
)
HEADS = ("num_heads", "text_heads")  # attention heads, which the shapes of the tensors do not tell
ALL_HEADS = (*HEADS, "decoder_heads")
LEGACY_END = 2  # eos_token_id of older CLIPModels, which pool at the largest id of a text
TEXT_END = "text_end"  # option: the end token that a config states, if it is not the largest id
HF_TOWER = {"num_heads": "num_attention_heads", "activation": "hidden_act", "norm_eps": "layer_norm_eps"}
TEXTS = ("resize_filter", "resize", "activation", "text_activation")  # options
NUMBERS = ("crop_ratio", "norm_eps", "text_norm_eps", "mean", "std")  # options; the last two may be lists of numbers


class Pixels(NamedTuple):
    """What a library calls our options of the preprocessing, and our ways to resize."""

    names: Mapping[str, str]
    resizes: Mapping[str, str]

    def write(self, config: ConfigDict) -> dict[str, Any]:
        """The library's entries for a config."""
        fields = config.preprocess
        options = {
            "mean": list(fields.mean),
            "std": list(fields.std),
            "resize_filter": fields.filter,
            "resize": self.resizes[fields.resize],
            "crop_ratio": fields.crop_ratio,
        }
        return {theirs: options[ours] for ours, theirs in self.names.items()}

    def read(self, content: Mapping[str, Any]) -> dict[str, Any]:
        """Our options from the library's entries; None for those that it does not state."""
        options = {ours: content.get(theirs) for ours, theirs in self.names.items()}
        return options | {"resize": _known_as(self.resizes, options["resize"])}


OPEN_CLIP_PIXELS = Pixels(
    {"mean": "mean", "std": "std", "resize_filter": "interpolation", "resize": "resize_mode"},
    {"shorter_side": "shortest", "squash": "squash"},
)
TIMM_PIXELS = Pixels(
    {"resize_filter": "interpolation", "crop_ratio": "crop_pct", "resize": "crop_mode", "mean": "mean", "std": "std"},
    {"shorter_side": "center", "squash": "squash"},
)


def sidecar_options(file: Path) -> dict[str, Any]:
    """Options of `interop.load` from the config files in the folder of some weights.

    Raises ValueError for a config that cannot be read or describes an unsupported model.
    """
    try:
        options = _sidecar_options(file)
        for names, kind in ((TEXTS, str), ((*ALL_HEADS, "depth", "text_depth", "image_size"), int)):
            if wrong := {name: options[name] for name in names if not isinstance(options.get(name), kind | None)}:
                raise TypeError(str(wrong))
        for name in NUMBERS:
            value = options.get(name)
            numbers = value if isinstance(value, list) and name in ("mean", "std") else [value]
            if value is not None and not all(isinstance(number, int | float) for number in numbers):
                raise TypeError(f"{name} {value!r}")
        return options
    except (KeyError, TypeError, AttributeError, ArithmeticError) as error:
        raise ValueError(f"{config_beside(file)}, or a file that belongs to it, is invalid: {error!r}") from None


def _sidecar_options(file: Path) -> dict[str, Any]:
    config_file = config_beside(file)
    if config_file is None:
        return {}
    content, folder = _json(config_file), file.parent
    vocabulary = hub_vocabulary.options(content, folder)
    if config_file == card_of(file):
        if content.get("bytes") != file.stat().st_size:
            raise ValueError(f"{config_file} does not describe {file}: remove it, or export again")
        return card_options(content) | vocabulary
    if config_file == folder / OPEN_CLIP:
        options, trunk = open_clip_options(content), folder / TRUNK / HUGGINGFACE
        image = content.get("model_cfg", content).get("vision_cfg", {})
        # An earlier export into the same folder may have left a trunk that this config does not name.
        if str(image.get("timm_model_name")).startswith(LOCAL) and trunk.exists():
            options |= {"num_heads": _json(trunk).get("model_args", {}).get("num_heads")}
        text = content.get("model_cfg", content).get("text_cfg", {})
        file = folder / (hub_vocabulary.TOKENIZER if text.get("proj_bias") else "vocab.txt")  # of SigLIP, of OpenVision
        if text.get("pool_type") == "last" and file.is_file():
            options["tokenizer"] = str(file)
        return options | vocabulary
    if "pretrained_cfg" in content:  # timm's config.json
        return timm_options(content) | {"interpolation": "timm"}
    preprocessors = [_json(folder / name) for name in (PREPROCESSOR, PROCESSOR) if (folder / name).exists()]
    preprocessor = preprocessors[0] if preprocessors else {}  # newer versions: an entry of the processor's config
    options, tokenizer = {}, folder / hub_vocabulary.TOKENIZER
    if content.get("model_type") in OWN_VOCABULARY and tokenizer.is_file():
        options["tokenizer"] = str(tokenizer)
    return huggingface_options(content, preprocessor.get("image_processor", preprocessor)) | options | vocabulary


def config_beside(file: Path) -> Path | None:
    """The config file that describes some weights: the card of an export, or that of open_clip, transformers or timm.

    If the weights lie in the workdir of a run, its config.json is ignored: it describes the run.
    """
    folder, card = file.parent, card_of(file)
    if is_card(card):
        return card
    is_named = file.name in weight_files.OF_HUB or weight_files.SHARD.search(file.name)
    if is_named and (folder / HUGGINGFACE).exists() and not workdirs.has_config(folder):
        return folder / HUGGINGFACE
    return folder / OPEN_CLIP if (folder / OPEN_CLIP).exists() else None


def is_card(path: Path) -> bool:
    """Whether a file is the card of an export; other programs may write files of that name."""
    content = _json(path) if path.exists() else {}
    return "create_model" in content or {"preprocessing", "bytes"} <= content.keys()


def _json(file: Path) -> dict[str, Any]:
    try:
        content = read_json(file)
    except ValueError as error:
        raise ValueError(f"{file} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{file} is not a JSON dictionary")
    return content


def open_clip_options(content: Mapping[str, Any]) -> dict[str, Any]:
    """Options of `interop.load` from an open_clip_config.json; raises ValueError for unsupported encoders."""
    model = content.get("model_cfg", content)
    image, text = model.get("vision_cfg", {}), model.get("text_cfg", {})
    is_siglip = text.get("no_causal_mask") and text.get("proj_bias") and text.get("pool_type") == "last"
    others = {"hf_model_name", "embed_cls"}
    is_last = text.get("pool_type") == "last"  # SigLIP's and OpenVision's
    others |= {"proj_bias"} if is_last and not is_siglip else set()
    others |= set() if is_last else {"no_causal_mask", "proj_bias", "norm_kwargs", "act_kwargs"}
    if unknown := others & {name for name, value in text.items() if value}:
        raise ValueError(
            f"unsupported text encoder of open_clip: {sorted(unknown)}; supported: those of CLIP, SigLIP and OpenVision"
        )
    if not is_last and (pooling := text.get("pool_type", "argmax")) != "argmax":  # at the largest id of a text
        raise ValueError(f"unsupported text pooling of open_clip: pool_type {pooling!r}; supported: argmax")
    timm, name = "timm_model_name" in image, str(image.get("timm_model_name"))
    activation = "quick_gelu" if model.get("quick_gelu") else "gelu"
    image_activation = activation if not timm else timm_gelu(name) if "siglip" in name else None
    tanh = is_last and (text.get("act_kwargs") or {}).get("approximate") == "tanh"
    poolings, usual = (TRUNK_POOLINGS, {"timm_pool": "avg"}) if timm else (OPEN_CLIP_POOLINGS, {"pool_type": "tok"})
    pooling, (field,) = _entry_of(poolings, stated := {**usual, **image}), usual
    if pooling is None and not (timm and stated[field] == "map"):  # the tensors show a pool
        supported = ", ".join(dict.fromkeys(entries[field] for entries in poolings.values()))
        raise ValueError(f"unsupported image pooling of open_clip: {stated[field]!r}; supported: {supported}")
    if not timm and image.get("act_kwargs"):
        raise ValueError(f"unsupported image encoder of open_clip: act_kwargs {image['act_kwargs']}")
    return {
        "depth": None if timm else image.get("layers"),
        "text_depth": text.get("layers"),
        "num_heads": None if timm else image.get("width", 768) // image.get("head_width", 64),  # open_clip's
        "text_heads": text.get("heads", 8),
        "activation": image_activation,
        "text_activation": "gelu_tanh" if tanh else activation,
        "text_norm_eps": (text.get("norm_kwargs") or {}).get("eps"),
        "pooling": pooling,
        "norm_eps": None if timm else (image.get("norm_kwargs") or {}).get("eps"),
        **OPEN_CLIP_PIXELS.read(content.get("preprocess_cfg", {})),
    }


def _known_as(names: Mapping[str, str], theirs: str | None) -> str | None:
    """Translates another library's word to ours.

    An unknown word is returned unchanged and causes an error later, unless an option overrides it.
    """
    return {other: ours for ours, other in names.items()}.get(theirs or "", theirs)


def timm_gelu(architecture: str) -> str:
    """The activation of an image encoder of SigLIP in timm."""
    return "gelu_tanh" if architecture.startswith(TIMM_TANH) else "gelu"


def timm_options(content: Mapping[str, Any]) -> dict[str, Any]:
    """Options of `interop.load` from timm's config.json."""
    stated, arguments = content["pretrained_cfg"], content.get("model_args") or {}
    architecture = content.get("architecture") or ""
    by_name = [activation for activation, mark in TIMM_MARKS.items() if mark in architecture]
    by_name += [timm_gelu(architecture)] if "siglip" in architecture else []
    return {
        "pooling": _entry_of(TIMM_POOLINGS, arguments),  # without one the tensors show it
        "depth": arguments.get("depth"),
        "num_heads": arguments.get("num_heads"),
        "activation": arguments.get("act_layer") or next(iter(by_name), None),  # other layouts have a usual one
        **TIMM_PIXELS.read(stated),
        "image_size": stated["input_size"][-1] if "_dinov3" in architecture else None,  # no positions show it
    }


def timm_preprocess(config: ConfigDict) -> dict[str, Any]:
    """The fields of timm's pretrained_cfg that describe the image preprocessing."""
    side = config.model.image_size
    return {"input_size": [3, side, side], **TIMM_PIXELS.write(config)}


def _entry_of(table: Mapping[str, Mapping[str, Any]], content: Mapping[str, Any]) -> str | None:
    """Our word for the first entries of a table that a library's config has; None if it has none of them."""
    return next((ours for ours, entries in table.items() if entries.items() <= content.items()), None)


def huggingface_options(content: Mapping[str, Any], preprocessor: Mapping[str, Any]) -> dict[str, Any]:
    """Options of `interop.load` from a transformers config.json and preprocessor_config.json."""
    image, text, kind = _part(content, "vision"), _part(content, "text"), content.get("model_type")
    if kind in DINO_KINDS:
        return dino_options(content, preprocessor)
    if kind not in KINDS:
        kinds = ", ".join(("clip", METACLIP_2, TIPS_2, FG_CLIP_2, SIGLIP, NAFLEX, DUAL_ENCODER, *DINO_KINDS))
        raise ValueError(f"unsupported model_type of {HUGGINGFACE}: {kind!r}; supported: {kinds}")
    is_siglip, is_vit = kind in SIGLIPS, image.get("model_type") == "vit"
    if kind == TIPS_2:
        options = _tower_options(image, 12, "gelu", 1e-6) | {"activation": None}  # gates show in the tensors
        texts = _tower_options(text, 12, "relu", 1e-5)
        texts = {"text_heads": texts["num_heads"], "text_activation": texts["activation"]}
        return options | texts | _huggingface_pixels(preprocessor)
    if not is_siglip and (text_kind := text.get("model_type")) not in TEXT_KINDS:
        raise ValueError(
            f"unsupported text encoder of {HUGGINGFACE}: model_type {text_kind!r}; supported: clip_text_model"
        )
    if is_vit and image.get("pooler_act", "tanh") != "linear":
        raise ValueError("unsupported ViTModel: its pooler must be the identity (pooler_act linear)")
    of_text = SIGLIP_USUAL if is_siglip else CLIP_USUAL
    images = _tower_options(image, 12, *(VIT_USUAL if is_vit else of_text))
    texts = _tower_options(text, 12 if is_siglip else 8, *of_text)
    end = text.get("eos_token_id")
    usual_ends = [text.get("vocab_size", VOCAB_SIZE) - 1]  # the largest id of a text, as in CLIP's
    usual_ends += [LEGACY_END] if kind != METACLIP_2 else []
    return {
        **images,
        "depth": image.get("num_hidden_layers"),
        "text_depth": text.get("num_hidden_layers"),
        "text_heads": texts["num_heads"],
        "text_activation": texts["activation"],
        "text_norm_eps": texts["norm_eps"],
        TEXT_END: None if is_siglip or end in usual_ends else end,
        "max_patches": preprocessor.get("max_num_patches"),
        **_huggingface_pixels(preprocessor),
        **({"resize": "squash", "crop_ratio": 1.0} if "FGCLIPModel" in (content.get("architectures") or ()) else {}),
    }


def _part(content: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """An encoder's part of a config.json; that of older CLIP models, NAME_config_dict, replaces it in transformers."""
    part, older = content.get(f"{name}_config") or {}, content.get(f"{name}_config_dict")
    return part if older is None else {"model_type": part.get("model_type"), **older}


def _tower_options(content: Mapping[str, Any], num_heads: int, activation: str, norm_eps: float) -> dict[str, Any]:
    """The options of an encoder by its part of a config.json; those that it lacks have transformers' values."""
    usual = {"num_heads": num_heads, "activation": activation, "norm_eps": norm_eps}
    options = {ours: content.get(theirs, usual[ours]) for ours, theirs in HF_TOWER.items()}
    return options | {"activation": _known_as(HIDDEN_ACTS, options["activation"])}


def _tower_config(kind: str, **options: Any) -> dict[str, Any]:
    """The part of a config.json with the options of an encoder: the inverse of `_tower_options`."""
    options["activation"] = HIDDEN_ACTS.get(options["activation"], options["activation"])
    return {"model_type": kind, **{theirs: options[ours] for ours, theirs in HF_TOWER.items()}}


def dino_options(content: Mapping[str, Any], preprocessor: Mapping[str, Any]) -> dict[str, Any]:
    """Options of `interop.load` from the config of an image encoder of DINOv2 or DINOv3.

    Raises ValueError for another activation and for rotary positions of another base.
    """
    activation = "silu" if content.get("use_gated_mlp") else "gelu"  # DINOv3's
    for name, known in {"hidden_act": activation, "rope_theta": ROTARY_BASE}.items():
        if (stated := content.get(name, known)) != known:
            raise ValueError(f"unsupported image encoder of {HUGGINGFACE}: {name} {stated!r}; supported: {known!r}")
    return {
        "depth": content.get("num_hidden_layers"),
        "num_heads": content.get("num_attention_heads"),
        "norm_eps": content.get("layer_norm_eps"),
        "image_size": content.get("image_size"),
        **_huggingface_pixels(preprocessor),
    }


def _huggingface_pixels(preprocessor: Mapping[str, Any]) -> dict[str, Any]:
    """The preprocessing of an image processor; missing fields, and null, get the defaults of the model family.

    Raises ValueError for an image that is not resized, or whose pixels are not divided by 255.
    """
    preprocessor = {name: value for name, value in preprocessor.items() if value is not None}
    for name, known in {"do_resize": True, "do_rescale": True, "rescale_factor": 1 / 255}.items():
        if not math.isclose(stated := preprocessor.get(name, known), known, rel_tol=1e-3):
            raise ValueError(f"unsupported {name} of {PREPROCESSOR}: {stated!r}; supported: {known!r}")
    number, size = preprocessor.get("resample"), preprocessor.get("size")
    names = dict(enumerate(PIL_FILTERS)) | {None: None}
    options = {
        "mean": preprocessor.get("image_mean") if preprocessor.get("do_normalize", True) else [0.0, 0.0, 0.0],
        "std": preprocessor.get("image_std") if preprocessor.get("do_normalize", True) else [1.0, 1.0, 1.0],
        "resize_filter": names.get(number, str(number)),  # an unknown number causes an error later
    }
    if size is None:
        return options
    kind = preprocessor.get("image_processor_type") or preprocessor.get("feature_extractor_type") or ""
    single = "height" if kind.startswith("ViT") else "shortest_edge"  # the meaning of a single number
    sides = size if isinstance(size, Mapping) else {single: size}
    squash = "height" in sides
    side = sides["height"] if squash else sides["shortest_edge"]
    crop = preprocessor.get("crop_size") or side
    cut = crop["height"] if isinstance(crop, Mapping) else crop
    ratio = cut / side if preprocessor.get("do_center_crop", not squash) else 1.0
    return options | {"resize": "squash" if squash else "shorter_side", "crop_ratio": ratio}


def card_of(file: Path) -> Path:
    """The path of the card, a JSON file next to the weights of an export that is a single file."""
    return file.with_name(f"{file.name}.json")


def state_dict_card(config: ConfigDict, heads: Collection[str] = HEADS) -> dict[str, Any]:
    """The card of a state dict: attention heads, the preprocessing in timm's terms, and a vocabulary of its own."""
    size = spec_of(config.model).size
    numbers = {"heads": {name: getattr(size, name) for name in heads}}
    return {**numbers, "preprocessing": timm_preprocess(config), **hub_vocabulary.stated(config)}


def timm_card(config: ConfigDict) -> dict[str, Any]:
    """The arguments of timm.create_model for the image encoder, and its image preprocessing."""
    return {"create_model": timm_arguments(spec_of(config.model)), "preprocessing": timm_preprocess(config)}


def timm_arguments(spec: Spec) -> dict[str, Any]:
    """Arguments of timm.create_model; all sizes are explicit, even if the architecture's name implies them."""
    size, rotary = spec.size, spec.style.positions == "rotary"
    if rotary:
        architecture = TIMM_ROTARY
    elif spec.style == Style() and _kind(spec) in TIMM:
        architecture = TIMM[_kind(spec)]
    else:  # the base architecture, for any sizes
        architecture = f"vit_base_patch16{TIMM_MARKS[spec.style.activation] if spec.style.pre_norm else '_'}224"
    registers: dict[str, Any] = {}
    if spec.class_tokens > 1:  # timm's DINOv3 has no bias of the keys, unless its attention is the usual one
        name, kind = ("num_reg_tokens", {"attn_type": "rope"}) if rotary else ("reg_tokens", {})
        registers = {name: spec.class_tokens - 1, **kind}
    return {
        "model_name": architecture,
        "img_size": spec.image_size,
        "patch_size": size.patch_size,
        "embed_dim": size.width,
        "depth": size.depth,
        "num_heads": size.num_heads,
        "num_classes": 0,
        "class_token": True,
        **_mlp_ratio(size.mlp_width, size.width),
        **registers,
        **TIMM_POOLINGS[spec.style.pooling],
    }


def _mlp_ratio(hidden: int, width: int) -> dict[str, float]:
    """The entry for MLPs that are not four times as wide, as ViT-g/14's 4.3637; timm and open_clip round down."""
    return {"mlp_ratio": math.ceil(1e4 * hidden / width) / 1e4} if hidden else {}


def other_heads(spec: Spec) -> str | None:
    """A warning if timm registers an architecture with the same shapes but another number of heads, else None.

    Such an architecture loads the tensors without an error, but computes other features.
    """
    patch_size, width, depth, num_heads = _kind(spec)
    for (*shapes, heads), name in TIMM.items():
        if shapes == [patch_size, width, depth] and heads != num_heads and spec.style == Style():
            return f"do not load it as timm's {name}: its {heads} heads compute other features from these tensors"
    return None


def card_options(content: Mapping[str, Any]) -> dict[str, Any]:
    """Options of `interop.load` from a card: the preprocessing, heads, and the activation if it is of a timm export."""
    arguments, heads = content.get("create_model", {}), content.get("heads", {})
    stated = {"pretrained_cfg": content["preprocessing"], "model_args": arguments}
    options = timm_options(stated | {"architecture": arguments.get("model_name")})
    return options | {name: heads[name] for name in ALL_HEADS if name in heads}


def timm_name(spec: Spec) -> str | None:
    """The architecture that timm registers for our image encoder, or None."""
    is_usual = spec.style == Style() and spec.image_size == 224 and not spec.size.mlp_width
    return TIMM.get(_kind(spec)) if is_usual else None


def _kind(spec: Spec) -> tuple[int, int, int, int]:
    return spec.size.patch_size, spec.size.width, spec.size.depth, spec.size.num_heads


def needs_trunk(config: ConfigDict) -> bool:
    """Whether open_clip needs the image encoder's config in a folder, since timm does not register its architecture."""
    spec = spec_of(config.model)
    return not spec.style.pre_norm and timm_name(spec) is None


def open_clip_config(config: ConfigDict, folder: Path) -> dict[str, Any]:
    """The content of open_clip_config.json for our model; raises ValueError if open_clip does not support the model."""
    if config.preprocess.crop_ratio != 1:
        raise ValueError(
            f"open_clip needs a crop of the full resized square; this model crops {config.preprocess.crop_ratio:g} of "
            "it; choose another format, or import the model again with --crop-ratio=1"
        )
    return {
        "model_cfg": open_clip_model(config, folder),
        "preprocess_cfg": OPEN_CLIP_PIXELS.write(config),
        **hub_vocabulary.stated(config),
    }


def open_clip_model(config: ConfigDict, folder: Path) -> dict[str, Any]:
    """The entry `model_cfg` of open_clip_config.json: the arguments of open_clip's CLIP."""
    spec = spec_of(config.model)
    size = spec.size
    if spec.style.pre_norm:
        image = {
            "image_size": spec.image_size,
            "layers": size.depth,
            "width": size.width,
            "head_width": size.width // size.num_heads,
            "patch_size": size.patch_size,
            **_mlp_ratio(size.mlp_width, size.width),
            **OPEN_CLIP_POOLINGS[spec.style.pooling],
        }
    else:
        image = {
            "timm_model_name": f"{LOCAL}{TRUNK}" if needs_trunk(config) else timm_name(spec),
            **TRUNK_POOLINGS[spec.style.pooling],
            "timm_proj": "linear",
            "image_size": spec.image_size,
        }
    return {
        "embed_dim": size.joint_width,
        "quick_gelu": spec.text_activation == "quick_gelu",
        "vision_cfg": image,
        "text_cfg": {
            "context_length": spec.context_length,
            "vocab_size": spec.vocab_size,
            "width": size.text_width,
            "heads": size.text_heads,
            "layers": size.text_depth,
            **_mlp_ratio(size.text_mlp_width, size.text_width),
            **({"hf_tokenizer_name": folder.resolve().name} if hub_vocabulary.fits(config) else {}),  # else CLIP's
        },
    }


def timm_trunk_config(config: ConfigDict) -> dict[str, Any]:
    """timm's config.json for an image encoder that it does not register: an architecture and the changed arguments."""
    card = timm_card(config)
    arguments = {
        name: value for name, value in card["create_model"].items() if name not in ("model_name", "num_classes")
    }
    return {
        "architecture": card["create_model"]["model_name"],
        "num_classes": 0,
        "model_args": arguments,
        "pretrained_cfg": card["preprocessing"] | {"num_classes": 0},
    }


def huggingface_config(config: ConfigDict) -> dict[str, Any]:
    """config.json of a SiglipModel, a CLIPModel (image encoders with a pre-norm) or a VisionTextDualEncoderModel."""
    spec = spec_of(config.model)
    is_siglip = spec.style.pooling == "attention"
    content = siglip_config(spec) if is_siglip else clip_config(spec, hub_vocabulary.special_ids(config))
    return content | hub_vocabulary.stated(config)


def clip_config(spec: Spec, special_ids: Mapping[str, int | None]) -> dict[str, Any]:
    """config.json of a CLIPModel or a VisionTextDualEncoderModel."""
    width, pre_norm = {"projection_dim": spec.size.joint_width}, spec.style.pre_norm
    image = _image_config(spec, "clip_vision_model" if pre_norm else "vit")
    image |= width if pre_norm else {"pooler_act": "linear", "initializer_factor": NO_CLIP}
    text = {**_text_config(spec, "clip_text_model"), **special_ids, **width}
    name, kind = ("CLIPModel", "clip") if pre_norm else ("VisionTextDualEncoderModel", DUAL_ENCODER)
    return {**width, "architectures": [name], "model_type": kind, "vision_config": image, "text_config": text}


def siglip_config(spec: Spec) -> dict[str, Any]:
    """config.json of a SiglipModel."""
    text = _text_config(spec, "siglip_text_model") | {
        "projection_size": spec.size.joint_width,
        "bos_token_id": None,
        "eos_token_id": 1,  # as in the vocabularies of the published models
        "pad_token_id": 1,
    }
    image = _image_config(spec, "siglip_vision_model")
    return {"architectures": ["SiglipModel"], "model_type": SIGLIP, "vision_config": image, "text_config": text}


def _image_config(spec: Spec, kind: str) -> dict[str, Any]:
    size, style = spec.size, spec.style
    return {
        **_tower_config(kind, num_heads=size.num_heads, activation=style.activation, norm_eps=style.norm_eps),
        "hidden_size": size.width,
        "num_hidden_layers": size.depth,
        "intermediate_size": size.mlp_width or 4 * size.width,
        "image_size": spec.image_size,
        "patch_size": size.patch_size,
    }


def _text_config(spec: Spec, kind: str) -> dict[str, Any]:
    size, eps = spec.size, spec.text_style.norm_eps
    return {
        **_tower_config(kind, num_heads=size.text_heads, activation=spec.text_activation, norm_eps=eps),
        "hidden_size": size.text_width,
        "num_hidden_layers": size.text_depth,
        "intermediate_size": size.text_mlp_width or 4 * size.text_width,
        "max_position_embeddings": spec.context_length,
        "vocab_size": spec.vocab_size,
    }


def preprocessor_config(config: ConfigDict) -> dict[str, Any]:
    """preprocessor_config.json: resize, center crop, mean and standard deviation from the model's config."""
    side, resized, filter, resize, *_ = transform_of(config)
    if spec_of(config.model).style.pooling == "attention" and resize == "squash" and side == resized:
        kind, cut = "SiglipImageProcessor", {}
    else:
        kind, cut = "CLIPImageProcessor", {"do_center_crop": True, "crop_size": {"height": side, "width": side}}
    return {
        "image_processor_type": kind,
        "do_resize": True,
        "size": {"height": resized, "width": resized} if resize == "squash" else {"shortest_edge": resized},
        "resample": PIL_FILTERS.index(filter),
        **cut,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(config.preprocess.mean),
        "image_std": list(config.preprocess.std),
        "do_convert_rgb": True,
    }


def transformers_class(config: ConfigDict) -> str:
    """The transformers class for which our model is exported."""
    return huggingface_config(config)["architectures"][0]
