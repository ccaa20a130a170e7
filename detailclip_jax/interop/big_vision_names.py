"""Layout of big_vision's SigLIP and SigLIP 2, whose weights are read in the form of transformers' SiglipModel.

    img/Transformer/encoderblock_0/MlpBlock_0/Dense_0/kernel    [D, H]
    img/Transformer/encoderblock/MlpBlock_0/Dense_0/kernel      [depth, D, H], if the model scans over its blocks

Attention heads are an axis of their own. The patch embedding is a convolution [p, p, 3, D] with positions [1, N, D];
NaFlex's is a matrix [p p 3, D] with positions [s, s, D]. Source: big_vision 0127fb6, models/vit.py and, in
models/proj/image_text, two_towers.py, text_transformer.py and naflex_vit.py.
"""

import numpy as np

from detailclip_jax.interop.huggingface_names import SIGLIP, convolved, naflex_options
from detailclip_jax.interop.key_tables import StateDict
from detailclip_jax.interop.model_sizes import Shapes

KERNEL, WORDS = "img/embedding/kernel", "txt/Embed_0/embedding"
BLOCKS = {"num_heads": "img/Transformer/encoderblock", "text_heads": "txt/Encoder_0/encoderblock"}
POOL = "vision_model.head.attention"
RENAMED = {  # parts of names, one after the other
    "img/MAPHead_0/MultiHeadDotProductAttention_0/": f"{POOL}.",
    "img/MAPHead_0/LayerNorm_0/": "vision_model.head.layernorm.",
    "img/MAPHead_0/": "vision_model.head.",
    "img/Transformer/encoderblock_": "vision_model.encoder.layers.",
    "img/Transformer/encoder_norm/": "vision_model.post_layernorm.",
    "img/embedding/": "vision_model.embeddings.patch_embedding.",
    "img/pos_embedding": "vision_model.embeddings.position_embedding.weight",
    "txt/Encoder_0/encoderblock_": "text_model.encoder.layers.",
    "txt/Encoder_0/encoder_norm/": "text_model.final_layer_norm.",
    "txt/Embed_0/embedding": "text_model.embeddings.token_embedding.weight",
    "txt/pos_embedding": "text_model.embeddings.position_embedding.weight",
    "txt/head/": "text_model.head.",
    "MultiHeadDotProductAttention_0/": "self_attn.",
    "query/": "q_proj.",
    "key/": "k_proj.",
    "value/": "v_proj.",
    "out/": "out_proj.",
    "MlpBlock_0/Dense_0/": "mlp.fc1.",
    "MlpBlock_0/Dense_1/": "mlp.fc2.",
    "LayerNorm_0/": "layer_norm1.",
    "LayerNorm_1/": "layer_norm2.",
    "kernel": "weight",
    "scale": "weight",
    "/": ".",
}
NUMBERS = {"t": "logit_scale", "b": "logit_bias"}


def heads(shapes: Shapes) -> dict[str, int]:
    """The numbers of attention heads of both encoders."""
    query = "MultiHeadDotProductAttention_0/query/kernel"
    keys = [(name, f"{blocks}{n}/{query}") for name, blocks in BLOCKS.items() for n in ("", "_0")]
    return {name: shapes[key][-2] for name, key in keys if len(shapes.get(key, ())) > 2}


def as_siglip(tensors: StateDict) -> StateDict:
    """Weights with the names and forms of a SiglipModel; tensors that are not big_vision's count as unknown there."""
    apart: dict[str, np.ndarray] = {}
    for key, value in tensors.items():
        if "/encoderblock/" in key and value.ndim > 1 and value.size:  # stacked blocks
            apart |= {key.replace("/encoderblock/", f"/encoderblock_{n}/"): block for n, block in enumerate(value)}
        else:
            apart[key] = value
    renamed = {}
    for key, value in apart.items():
        name = key
        for old, new in RENAMED.items():
            name = name.replace(old, new)
        renamed[NUMBERS.get(name, name)] = _transposed(key, value)
    for kind in ("weight", "bias"):
        shares = [f"{POOL}.{name}_proj.{kind}" for name in "qkv"]
        if all(share in renamed for share in shares):
            renamed[f"{POOL}.in_proj_{kind}"] = np.concatenate([renamed.pop(share) for share in shares])
    return convolved(renamed)


def _transposed(key: str, value: np.ndarray) -> np.ndarray:
    """A tensor with its axes in PyTorch's order, and without an axis of heads."""
    if value.ndim < 2:
        return value
    if key.endswith("/bias"):
        return value.reshape(-1)
    if key.endswith("pos_embedding"):
        return value.reshape(-1, value.shape[-1])
    if not key.endswith("/kernel"):
        return value
    if key == KERNEL and value.ndim == 4:
        return value.transpose(3, 2, 0, 1)
    return value.reshape((-1, value.shape[-1]) if key.endswith("/out/kernel") else (len(value), -1)).T


BIG_VISION = SIGLIP._replace(
    name="big_vision",
    marks=(KERNEL, WORDS),
    prefixes=("params/",),
    prepare=as_siglip,
    stated=lambda shapes: naflex_options(shapes, KERNEL) | heads(shapes),
    read_only=True,
    filter="bilinear",
)
