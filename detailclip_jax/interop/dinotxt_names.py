"""Parameter names and layout of dino.txt's published weights, and what is converted before they are read.

One file has the image head and the text encoder, as PyTorch modules of the whole model; DINOv3's image encoder has a
file of its own. The queries, keys and values of texts have no biases there: they get biases of 0, which training may
change. Layer scale of the image encoder is multiplied into other layers, so the weights are read but not written.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from detailclip_jax.interop import dino_names, tensor_files
from detailclip_jax.interop.key_tables import (
    LINEAR,
    SAME,
    VALUE,
    Entry,
    StateDict,
    Table,
    concatenated,
    linear,
    norm,
    numbered,
    within,
)
from detailclip_jax.interop.model_sizes import Spec
from detailclip_jax.interop.tensor_layout import EVAL_256, TensorLayout
from detailclip_jax.models.image_blocks import NUM_BLOCKS
from detailclip_jax.runtime.weight_files import HEAD_AND_TEXTS, PART_SUFFIXES

IMAGE, HEAD, TEXT = "visual_model.backbone", "visual_model.head", "text_model.backbone"
TEXT_PROJECTION = "text_model.head.linear_projection.weight"
image_table = dino_names.table_in(dino_names.DINOV3._replace(gated=dino_names.DINOV3.mlp), registers=True)
FOLDER = "import a folder with this file and the .pth file of its image encoder, such as dinov3_vitl16_pretrain_*.pth"


def head_block(path: str, key: str) -> list[Entry]:
    """A block of the image head."""
    return [
        *norm(f"{path}/norm1", f"{key}.norm1"),
        Entry(f"{path}/attn/qkv/kernel", f"{key}.attn.qkv.weight", LINEAR),
        *linear(f"{path}/attn/proj", f"{key}.attn.proj"),
        Entry(f"{path}/ls1/scale", f"{key}.ls1.gamma", SAME),
        *norm(f"{path}/norm2", f"{key}.norm2"),
        *concatenated(f"{path}/mlp/fc1", [f"{key}.mlp.w1", f"{key}.mlp.w2"]),
        *linear(f"{path}/mlp/fc2", f"{key}.mlp.w3"),
        Entry(f"{path}/ls2/scale", f"{key}.ls2.gamma", SAME),
    ]


def text_block(path: str, key: str) -> list[Entry]:
    """A block of the text encoder."""
    return [
        *norm(f"{path}/norm1", f"{key}.attention_norm"),
        *linear(f"{path}/attn/qkv", f"{key}.attention.qkv"),
        *linear(f"{path}/attn/proj", f"{key}.attention.proj"),
        *norm(f"{path}/norm2", f"{key}.ffn_norm"),
        *linear(f"{path}/mlp/fc1", f"{key}.feed_forward.fc1"),
        *linear(f"{path}/mlp/fc2", f"{key}.feed_forward.fc2"),
    ]


def table(spec: Spec) -> Table:
    """The whole model."""
    return Table(
        [
            *within(IMAGE, image_table(spec).params),
            *numbered(NUM_BLOCKS, head_block, "image_projection", f"{HEAD}.blocks"),
            *norm("image_projection/norm", f"{HEAD}.ln_final"),
            Entry("text/token_embedding", f"{TEXT}.token_embedding.weight", SAME),
            Entry("text/positions", f"{TEXT}.positional_embedding", SAME),
            *numbered(spec.size.text_depth, text_block, "text", f"{TEXT}.blocks"),
            *norm("text/ln_final", f"{TEXT}.ln_final"),
            Entry("text_projection/proj/kernel", TEXT_PROJECTION, LINEAR),
            Entry("logit_scale/value", "logit_scale", VALUE),
        ]
    )


def completed(tensors: StateDict) -> StateDict:
    """Weights with the image encoder as `dino_names` reads it, and with biases of 0 where texts have none.

    Raises ValueError without an image encoder.
    """
    image = {key.removeprefix(f"{IMAGE}."): value for key, value in tensors.items() if key.startswith(f"{IMAGE}.")}
    if not image:
        raise ValueError(f"the file has dino.txt's image head and text encoder without an image encoder; {FOLDER}")
    others = {key: value for key, value in tensors.items() if not key.startswith(f"{IMAGE}.")}
    kernels = [key for key in others if key.startswith(f"{TEXT}.") and key.endswith(".attention.qkv.weight")]
    biases = {f"{key.removesuffix('weight')}bias": np.zeros(len(others[key]), np.float32) for key in kernels}
    return {f"{IMAGE}.{key}": value for key, value in dino_names.DINOV3.prepare(image).items()} | biases | others


def heads(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """The heads of the text encoder, of width 64 (20 in the published one)."""
    width = shapes.get(f"{TEXT}.positional_embedding", (0,))[-1]
    return {"text_heads": width // 64} if width and width % 64 == 0 else {}


def pair_in(folder: Path) -> Mapping[str, Any] | None:
    """The weights of a folder with dino.txt's file and that of its image encoder; None without a file of dino.txt.

    Raises ValueError unless there is one of each.
    """
    files = [path for path in sorted(folder.iterdir()) if path.suffix in PART_SUFFIXES]
    heads_and_texts = [path for path in files if HEAD_AND_TEXTS in path.stem]
    if not heads_and_texts:
        return None
    encoders = [path for path in files if path not in heads_and_texts]
    if len(heads_and_texts) != 1 or len(encoders) != 1:
        names = ", ".join(path.name for path in files)
        raise ValueError(f"{folder} has {names}; {FOLDER}, and no other weights")
    image = {f"{IMAGE}.{key}": value for key, value in tensor_files.read(encoders[0]).items()}
    return image | dict(tensor_files.read(heads_and_texts[0]))


def layout() -> TensorLayout:
    """The layout of the whole model, on DINOv3's L/16."""
    image = dino_names.layout_of(dino_names.DINOV3, True, False)
    return image._replace(
        name="dinotxt",
        method="dinotxt",
        marks=(f"{HEAD}.ln_final.weight", f"{TEXT}.token_embedding.weight"),
        tower=image.tower.within(IMAGE),
        table=table,
        text={
            "blocks": f"{TEXT}.blocks",
            "positions": f"{TEXT}.positional_embedding",
            "token_embedding": f"{TEXT}.token_embedding.weight",
            "joint": TEXT_PROJECTION,
        },
        text_activation="gelu",
        mlps={"mlp_width": f"{IMAGE}.{image.mlps['mlp_width']}"},
        prepare=completed,
        stated=heads,
        prefixes=(),
        drops=tuple(rf"{IMAGE}\.{pattern}" for pattern in dino_names.DROPS),
        resize=None,
        **EVAL_256,
    )
