"""Parameter names of big_vision's SigLIP and SigLIP 2, whose weights are read in the form of transformers' SiglipModel.

    img/Transformer/encoderblock_0/MlpBlock_0/Dense_0/kernel    [D, H]
    img/Transformer/encoderblock/MlpBlock_0/Dense_0/kernel      [depth, D, H], if the model scans over its blocks

Attention heads are an axis of their own. The patch embedding is a convolution [p, p, 3, D] with positions [1, N, D];
NaFlex's is a matrix [p p 3, D] with positions [s, s, D]. Source: big_vision 0127fb6, models/vit.py and, in
models/proj/image_text, two_towers.py, text_transformer.py and naflex_vit.py.
"""

from collections.abc import Iterator

import numpy as np

from detailclip_jax.interop.huggingface import convolved
from detailclip_jax.interop.key_tables import StateDict
from detailclip_jax.interop.measure import Shapes

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
    keys = {name: (f"{blocks}_0/{query}", f"{blocks}/{query}") for name, blocks in BLOCKS.items()}
    found = {name: [shapes[key] for key in pair if key in shapes] for name, pair in keys.items()}
    return {name: shape[0][-2] for name, shape in found.items() if shape and len(shape[0]) > 2}


def as_siglip(tensors: StateDict) -> StateDict:
    """Weights with the names and forms of a SiglipModel; tensors that are not big_vision's count as unknown there."""
    found = {_renamed(key): _transposed(key, value) for key, value in _separate(tensors)}
    for kind in ("weight", "bias"):
        shares = [f"{POOL}.{name}_proj.{kind}" for name in "qkv"]
        if all(share in found for share in shares):
            found[f"{POOL}.in_proj_{kind}"] = np.concatenate([found.pop(share) for share in shares])
    return convolved(found)


def _separate(tensors: StateDict) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors, with those of scanned blocks apart."""
    for key, value in tensors.items():
        if "/encoderblock/" in key and value.ndim > 1 and value.size:
            layers = enumerate(value)
            yield from ((key.replace("/encoderblock/", f"/encoderblock_{n}/"), layer) for n, layer in layers)
        else:
            yield key, value


def _renamed(key: str) -> str:
    for old, new in RENAMED.items():
        key = key.replace(old, new)
    return NUMBERS.get(key, key)


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
