"""Verifies exports: the target library loads the written file, and both models must encode the same batch equally.

PyTorch and these libraries come with the extra `torch`, so they are imported only where they are used.
"""

import contextlib
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from detailclip_jax import methods
from detailclip_jax.interop import clip_names, hub, hub_vocabulary, tensor_files
from detailclip_jax.interop.measure import Spec, spec_of
from detailclip_jax.kernels.products import EXACT
from detailclip_jax.models.cross_pool import NUM_HEADS
from detailclip_jax.models.towers import Networks
from detailclip_jax.runtime.errors import RunError
from detailclip_jax.types import Array, Float, Int, Params

TOLERANCE = 1e-4
BATCH = 2
TINY = 1e-30
Features = dict[str, Float[np.ndarray, "..."]]
Reader = Callable[[Path, ConfigDict, "Inputs"], Features]


class NotEqualError(RunError):
    """The exported model and ours compute different features."""


class Inputs(NamedTuple):
    """The fixed batch: normalised images, and captions of different lengths."""

    images: Float[np.ndarray, "B S S 3"]
    tokens: Int[np.ndarray, "B T"]


class Difference(NamedTuple):
    """The largest absolute difference of a feature between JAX and the library, and its ratio to the largest value."""

    absolute: float
    relative: float


def inputs(config: ConfigDict, end: int | None = None) -> Inputs:
    """Random pixels, normalised as the config states, and captions with SOT, words and EOT.

    EOT is `end`, by default that of the model's tokenizer, and all other ids are smaller.
    """
    rng, spec = np.random.default_rng(0), spec_of(config.model)
    end = hub_vocabulary.end_of(config) if end is None else end
    pixels = rng.integers(0, 256, (BATCH, spec.image_size, spec.image_size, 3)) / 255
    images = ((pixels - config.preprocess.mean) / config.preprocess.std).astype(np.float32)
    tokens = rng.integers(1, max(end - 1, 2), (BATCH, spec.context_length), np.int32)
    tokens[:, 0] = end - 1
    for row in range(BATCH):
        last = spec.context_length - 1 - row * spec.context_length // 3
        tokens[row, last:] = [end] + [0] * (spec.context_length - 1 - last)
    return Inputs(images, tokens)


def ours(model: Networks, params: Params, batch: Inputs) -> Features:
    """Features of our networks, in exact float32: of both encoders, or the tokens if there is only an image encoder."""
    hashable = cast(Any, model)  # Flax modules are, but not for a type checker
    with jax.default_matmul_precision(EXACT):
        return {name: np.asarray(value) for name, value in _features(hashable)(params, *batch).items()}


@functools.lru_cache(maxsize=8)
def _features(model: Networks) -> Callable[..., dict[str, Array]]:
    """The jitted function of `ours`; equal models share one, which is compiled once."""

    @jax.jit
    def features(params: Params, images: Array, tokens: Array) -> dict[str, Array]:
        bound = model.bind({"params": params})
        if "image_projection" not in model.table:
            return {"image": tokens_of(bound, images)}
        return {"image": bound.embed_image(images), "text": bound.embed_text(tokens)}

    return features


def own_score(model: Networks, params: Params, config: ConfigDict, batch: Inputs) -> Features:
    """The scores [B, B] of images and texts by the method's own definition, in exact float32."""
    score = methods.build(config).score
    assert score is not None  # only called for such methods

    @jax.jit
    def scores(params: Params, images: Array, tokens: Array) -> Array:
        bound = model.bind({"params": params})
        return score(bound, images, bound.embed_text(tokens))

    with jax.default_matmul_precision(EXACT):
        return {"score": np.asarray(scores(params, *batch))}


def tokens_of(networks: Any, images: Float[Array, "B S S 3"]) -> Float[Array, "B M D"]:
    """The image feature and the patch features in one array."""
    tokens = networks.image(images)
    return jnp.concatenate([tokens.cls[:, None], tokens.patches], 1)


def image_tokens(model: Networks, params: Params, batch: Inputs) -> Features:
    """Tokens of our image encoder, without the projection."""
    return ours(model.only("image"), params, batch)


def compare(theirs: Features, expected: Features) -> dict[str, Difference]:
    """The difference of every feature; raises NotEqualError if one exceeds TOLERANCE times the largest value."""
    found = {name: difference(theirs[name], value) for name, value in expected.items()}
    if bad := [f"{name} {d.relative:.1e}" for name, d in found.items() if not d.relative <= TOLERANCE]:
        raise NotEqualError(f"the written model differs from the original: relative difference of {', '.join(bad)}")
    return found


def difference(theirs: Float[np.ndarray, "..."], expected: Float[np.ndarray, "..."]) -> Difference:
    """The difference of one feature."""
    absolute = float(np.abs(theirs - expected).max())
    return Difference(absolute, absolute / max(float(np.abs(expected).max()), TINY))


def _tensors(path: Path, prefix: str = "") -> dict[str, Any]:
    import torch

    tensors = tensor_files.read(path)
    chosen = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    return {key: torch.from_numpy(np.array(value)) for key, value in chosen.items()}


def _images(batch: Inputs) -> Any:
    import torch

    return torch.from_numpy(np.ascontiguousarray(batch.images.transpose(0, 3, 1, 2)))


def _text(batch: Inputs) -> Any:
    import torch

    return torch.from_numpy(batch.tokens).long()


def timm_tokens(
    path: Path, config: ConfigDict, batch: Inputs, prefix: str = "", card: Mapping[str, Any] | None = None
) -> Features:
    """Image feature and patch features of timm's model, loaded strictly and built from the card if one is given."""
    import timm
    import torch

    arguments = card["create_model"] if card else hub.timm_arguments(spec_of(config.model))
    model: Any = timm.create_model(**arguments).eval()
    model.load_state_dict(_tensors(path, prefix), strict=True)
    with torch.inference_mode():
        tokens = model.forward_features(_images(batch))
        pooled = model.forward_head(tokens, pre_logits=True)
        return {"image": torch.cat([pooled[:, None], tokens[:, model.num_prefix_tokens :]], 1).numpy()}


def slip_features(path: Path, config: ConfigDict, batch: Inputs, teacher: bool = False) -> Features:
    """CLIP in SLIP's layout, built from timm's image encoder and open_clip's text encoder, each loaded strictly."""
    import torch

    suffix, tensors = "_e" if teacher else "", _tensors(path)
    image = timm_tokens(path, config, batch, "visual_ema." if teacher else "visual.")["image"][:, 0]
    text = _text_tower(spec_of(config.model))
    named = {name: tensors[name] for name in ("token_embedding.weight", "positional_embedding")}
    named |= {name: tensors[name] for name in ("ln_final.weight", "ln_final.bias")}
    blocks = {k: v for k, v in tensors.items() if k.startswith(f"transformer{suffix}.resblocks.")}
    named |= {key.replace(f"transformer{suffix}.", "transformer.", 1): value for key, value in blocks.items()}
    text.load_state_dict(named | {"text_projection": tensors[f"text_projection{suffix}"]}, strict=True)
    with torch.inference_mode():
        embedded = torch.from_numpy(image.copy()) @ tensors[f"image_projection{suffix}"]
        return {"image": embedded.numpy(), "text": text(_text(batch)).numpy()}


def _text_tower(spec: Spec) -> Any:
    from open_clip.transformer import QuickGELU, TextTransformer

    size = spec.size
    return TextTransformer(
        spec.context_length,
        spec.vocab_size,
        size.text_width,
        size.text_heads,
        size.text_depth,
        output_dim=size.joint_width,
        act_layer=QuickGELU,
    ).eval()


def reference_features(path: Path, config: ConfigDict, batch: Inputs) -> Features:
    """Student and teacher of a DetailCLIP state dict."""
    student, teacher = (slip_features(path, config, batch, teacher=flag) for flag in (False, True))
    return {f"{name} (student)": v for name, v in student.items()} | {
        f"{name} (teacher)": v for name, v in teacher.items()
    }


def open_clip_features(path: Path, config: ConfigDict, batch: Inputs) -> Features:
    """Features of the model that open_clip loads, strictly, from the directory."""
    import open_clip
    import torch

    with contextlib.chdir(path):  # where the image encoder's config may be, see `hub.needs_trunk`
        model: Any = open_clip.create_model_and_transforms("local-dir:.")[0].eval()
    with torch.inference_mode():
        image, text = model.encode_image(_images(batch)), model.encode_text(_text(batch))
        return {"image": image.numpy(), "text": text.numpy()}


def cosmos_features(path: Path, config: ConfigDict, batch: Inputs) -> Features:
    """Features of student and teacher of a COSMOS checkpoint: open_clip's CLIP, with all of its tensors found."""
    import open_clip
    import torch

    content, found = tensor_files.read(path), {}
    for part in clip_names.COSMOS_PARTS:
        tensors = {key: torch.from_numpy(np.array(value)) for key, value in tensor_files.part_of(content, part).items()}
        model: Any = open_clip.model.CLIP(**hub.open_clip_model(config, path)).eval()
        model.load_state_dict({key: tensors[key] for key in model.state_dict()}, strict=True)
        with torch.inference_mode():
            features = {"image": model.encode_image(_images(batch)), "text": model.encode_text(_text(batch))}
        found |= {f"{name} ({part})": value.numpy() for name, value in features.items()}
    return found


def flair_features(path: Path, config: ConfigDict, batch: Inputs) -> Features:
    """Features of a FLAIR checkpoint: open_clip's CLIP with its projections, and PyTorch's attention as its pool."""
    import open_clip
    import torch

    tensors, content = _tensors(path), hub.open_clip_model(config, path)
    content["vision_cfg"]["output_tokens"] = True
    model: Any = open_clip.model.CLIP(**content).eval()
    pool = {
        key.removeprefix(f"{clip_names.FLAIR_POOL}."): value
        for key, value in tensors.items()
        if key.startswith(clip_names.FLAIR_POOL)
    }
    named = {
        "visual.proj": tensors[clip_names.FLAIR_IMAGE_PROJECTION],
        "text_projection": tensors[clip_names.FLAIR_TEXT_PROJECTION],
    }
    model.load_state_dict({key: (tensors | named)[key] for key in model.state_dict()}, strict=True)
    with torch.inference_mode():
        image, patches = model.visual(_images(batch))
        text = model.encode_text(_text(batch))
        score = _pooled_cosines(pool, text, patches @ named["visual.proj"])
        return {"image": image.numpy(), "text": text.numpy(), "score": score.numpy()}


def _pooled_cosines(tensors: Mapping[str, Any], texts: Any, patches: Any) -> Any:
    """Cosines [B, B] of texts [B, E] with the patches [B, N, E] that each of them pools; FLAIR's, in PyTorch."""
    import torch

    width = texts.shape[-1]
    pool = torch.nn.ModuleDict({f"ln_{name}": torch.nn.LayerNorm(width) for name in "qkv"})
    pool["attn"] = torch.nn.MultiheadAttention(width, NUM_HEADS, batch_first=True, add_zero_attn=True)
    pool.eval().load_state_dict(dict(tensors), strict=True)
    queries = pool["ln_q"](texts).expand(len(patches), -1, -1)
    pooled = pool["attn"](queries, pool["ln_k"](patches), pool["ln_v"](patches), need_weights=False)[0]
    return torch.nn.functional.cosine_similarity(pooled, texts[None], -1)


def huggingface_features(path: Path, config: ConfigDict, batch: Inputs) -> Features:
    """Features of the model that transformers loads from the directory.

    Raises ValueError if a tensor is missing, unknown or of a wrong shape.
    """
    import torch
    from transformers import AutoModel

    model, loading = AutoModel.from_pretrained(path, output_loading_info=True, dtype=torch.float32)
    if faults := {name: found for name, found in loading.items() if found}:
        raise ValueError(f"transformers does not load {path} strictly: {faults}")
    with torch.inference_mode():
        image = model.eval().get_image_features(pixel_values=_images(batch))
        text = model.get_text_features(input_ids=_text(batch))
        features = {"image": image, "text": text}  # tensors before transformers 5, since then objects that hold them
        return {name: getattr(value, "pooler_output", value).numpy() for name, value in features.items()}


def rows(differences: Mapping[str, Difference]) -> list[str]:
    """The lines of the table that an export prints."""
    width = max(len(name) for name in differences)
    head = f"{'feature':<{width}}  {'max abs':>9}  {'relative':>9}"
    return [head, *(f"{n:<{width}}  {d.absolute:>9.1e}  {d.relative:>9.1e}" for n, d in differences.items())]
