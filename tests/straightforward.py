"""DetailCLIP's loss without a single saving, from the equations and the parameters alone: what all savings must equal.

Views one after the other, full attention maps of every layer, every token through every layer and head, decoded tokens
put back into place, all logits at once.
"""

import math

import jax
import jax.numpy as jnp

from detailclip_jax.config import sizes
from detailclip_jax.methods import masking
from detailclip_jax.models import patchify
from detailclip_jax.models.patchify import normalise_pixels
from detailclip_jax.models.positions import sincos_positions


def norm(p, x, eps=1e-6):
    mean = x.mean(-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(-1, keepdims=True)
    return (x - mean) / jnp.sqrt(variance + eps) * p["scale"] + p["bias"]


def linear(p, x):
    return x @ p["kernel"] + p.get("bias", 0.0)


def gelu(x):
    return 0.5 * x * (1 + jax.lax.erf(x / 2**0.5))


def gelu_tanh(x):
    return 0.5 * x * (1 + jnp.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def relu(x):
    return jnp.where(x > 0, x, 0.0)


def quick_gelu(x):
    return x * jax.nn.sigmoid(1.702 * x)


def block(p, x, heads, eps=1e-6, activation=gelu, causal=False):
    """All tokens after the block, and the maps [B, heads, N, N]."""
    qkv = linear(p["attn"]["qkv"], norm(p["norm1"], x, eps))
    q, k, v = jnp.moveaxis(qkv.reshape(*x.shape[:2], 3, heads, -1), 2, 0)
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / q.shape[-1] ** 0.5
    if causal:
        scores = jnp.where(jnp.tril(jnp.ones(scores.shape[-2:], bool)), scores, -jnp.inf)
    maps = jax.nn.softmax(scores)
    x = x + linear(p["attn"]["proj"], jnp.einsum("bhqk,bkhd->bqhd", maps, v).reshape(x.shape))
    inside = activation(linear(p["mlp"]["fc1"], norm(p["norm2"], x, eps)))
    return x + linear(p["mlp"]["fc2"], inside), maps


def blocks(p, x, *args, **options):
    """Tokens after all numbered blocks, and the maps of each."""
    maps = []
    for number in range(sum(name.startswith("blocks_") for name in p)):
        x, now = block(p[f"blocks_{number}"], x, *args, **options)
        maps.append(now)
    return x, maps


def vit(p, images, size, kept=None):
    """Normalised tokens [B, 1 + N, D] and maps; all patches are embedded, then some kept."""
    x = linear(p["patch_embed"], patchify.patchify(images, size.patch_size)) + p["positions"][1:]
    if kept is not None:
        x = jnp.take_along_axis(x, kept[..., None], 1)
    cls = jnp.broadcast_to(p["cls_token"] + p["positions"][0], (len(x), 1, x.shape[-1]))
    x, maps = blocks(p, jnp.concatenate([cls, x], 1), size.num_heads)
    return norm(p["norm"], x), maps


def text(p, tokens, size):
    """The features of all words, of which the end token's are taken."""
    x = p["token_embedding"][tokens] + p["positions"][: tokens.shape[1]]
    x, _ = blocks(p, x, size.text_heads, 1e-5, quick_gelu, causal=True)
    return norm(p["ln_final"], x, 1e-5)[jnp.arange(len(x)), tokens.argmax(-1)]


def decoder(p, tokens, kept, num_patches, heads):
    """Every patch decoded: kept tokens at their places, mask tokens elsewhere."""
    x = linear(p["embed"], tokens)
    empty = jnp.broadcast_to(p["mask_token"], (len(x), num_patches, x.shape[-1]))
    full = jax.vmap(lambda mask, tokens, places: mask.at[places].set(tokens))(empty, x[:, 1:], kept)
    x = jnp.concatenate([x[:, :1], full], 1) + sincos_positions(x.shape[-1], round(num_patches**0.5))
    return norm(p["norm"], blocks(p, x, heads)[0])[:, 1:]


def prototype_logits(p, x):
    """Of every token."""
    inside = gelu(linear(p["mlp_1"], gelu(linear(p["mlp_0"], x))))
    bottleneck = linear(p["mlp_2"], inside)
    bottleneck = bottleneck / jnp.linalg.norm(bottleneck, axis=-1, keepdims=True)
    direction = p["direction"] / jnp.linalg.norm(p["direction"], axis=-1, keepdims=True)
    return bottleneck @ (p["gain"][:, None] * direction).T


def cross_entropy(student, teacher, center, temperature):
    target = jax.nn.softmax((teacher - center) / temperature)
    return -(target * jax.nn.log_softmax(student / 0.1)).sum(-1)


def contrast(image, words, scale):
    image, words = (x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (image, words))
    logits, own = scale * image @ words.T, jnp.arange(len(image))
    rows, columns = jax.nn.log_softmax(logits), jax.nn.log_softmax(logits.T)
    return -(rows[own, own].mean() + columns[own, own].mean()) / 2


def combined_loss(params, teacher, batch, centers, temperatures, config):
    """Eq. 10 with all weights 1, and the batch means of the teacher's logits."""
    size, side = sizes.size_of(config.model), sizes.num_side_patches(config.model)
    rule = masking.RemovalRule(side, config.masking.ratio, config.masking.granularity)
    embedded = linear(params["text_projection"]["proj"], text(params["text"], batch["text"][:, 0], size))
    terms, seen = [], []
    for v in range(2):
        images = normalise_pixels(
            batch["image"]["large"][:, v], tuple(config.preprocess.mean), tuple(config.preprocess.std)
        )
        target, maps = vit(teacher["image"], images, size)
        attention = jnp.stack(maps).mean((0, 2))[:, 0, 1:]  # eq. 9
        hidden = masking.strategy("attention_low")(rule, attention=attention[None], keys=None, views=1)
        mask, kept = hidden.mask[0], hidden.kept[0]
        latent, _ = vit(params["image"], images, size, kept)
        decoded = decoder(params["decoder"], latent, kept, side**2, size.decoder_heads)
        student = prototype_logits(params["prototype_head"], jnp.concatenate([latent[:, :1], decoded], 1))
        teacher_logits = prototype_logits(teacher["prototype_head"], target)
        seen.append((student, teacher_logits))
        per_patch = cross_entropy(student[:, 1:], teacher_logits[:, 1:], centers["patch"], temperatures["patch"])
        pixels = patchify.normalise_patches(patchify.patchify(images, size.patch_size))
        error = ((linear(params["pixel_head"]["proj"], decoded) - pixels) ** 2).mean(-1)
        terms.append(
            contrast(
                linear(params["image_projection"]["proj"], latent[:, 0]),
                embedded,
                jnp.exp(params["logit_scale"]["value"]),
            )
            + ((per_patch * mask).sum(-1) / mask.sum(-1)).mean()
            + (error * mask).sum() / mask.sum()
        )
    (u, u_target), (v, v_target) = seen
    pairs = [(u, v_target), (v, u_target)]
    cls = [cross_entropy(s[:, 0], t[:, 0], centers["cls"], temperatures["cls"]).mean() for s, t in pairs]
    logits = jnp.stack([u_target, v_target])
    means = {"cls": logits[:, :, 0].mean((0, 1)), "patch": logits[:, :, 1:].mean((0, 1, 2))}
    return sum(terms) / 2 + sum(cls) / 2, means
