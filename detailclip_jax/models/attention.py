"""Multi-head attention, the CLS token's attention (eq. 9), and the choice of the attention kernel."""

from typing import Any, Literal, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
from absl import logging

from detailclip_jax.kernels.products import matmul_precision, precision_of
from detailclip_jax.models.layers import Initialiser, Linear, Weights, affine
from detailclip_jax.types import Array, Bool, Float, Int

Kernel: TypeAlias = Literal["xla", "cudnn", "by platform"]
KERNELS = ("auto", "xla", "cudnn")
HALVES = (jnp.bfloat16, jnp.float16)


class Attention(nn.Module):
    """Multi-head attention with one `qkv` kernel, in two steps: `project` tokens, then attend with `__call__`.

    `kernel` is that of `choose_kernel`. Without `qkv_bias` queries, keys and values have no bias.
    """

    width: int
    num_heads: int
    qkv_init: Initialiser
    proj_init: Initialiser
    dtype: Any = jnp.float32
    kernel: Kernel = "xla"
    qkv_bias: bool = True

    def setup(self) -> None:
        """Creates the parameters."""
        self.qkv = Weights(3 * self.width, self.qkv_init, use_bias=self.qkv_bias)
        self.proj = Linear(self.width, self.proj_init, self.dtype)

    def project(self, x: Float[Array, "*batch D"], first: int = 0, last: int = 3) -> Float[Array, "*batch M"]:
        """Projects normalised tokens to query (0), key (1) and value (2), concatenated.

        `first` and `last` select a range of these three; `last` is excluded.
        """
        kernel, bias = self.qkv(self.width)
        part = slice(first * self.width, last * self.width)
        return affine(x, kernel[:, part], None if bias is None else bias[part], self.dtype)

    def __call__(
        self,
        query: Float[Array, "B Q D"],
        pairs: Float[Array, "B N D2"],
        mask: Bool[Array, "#B 1 #Q N"] | None = None,
        causal: bool = False,
        cls_row: bool = False,
    ) -> tuple[Float[Array, "B Q D"], Float[Array, "B N"] | None]:
        """Computes the attention output; `pairs` holds keys and values, concatenated.

        `mask` is True at the keys that are attended to; if all queries share it, these are the first keys, and the rest
        is padding. With `cls_row` also returns the softmax of the first token's
        query over all these keys, averaged over heads (float32), else None. It is computed separately, without the
        full attention maps, so that a fused kernel can compute the output.
        """
        (query,), (key, value) = self._heads(query, 1), self._heads(pairs, 2)
        attended = attend(query, key, value, mask, causal, self.kernel)
        out = self.proj(attended.reshape(*query.shape[:2], self.width))
        return out, cls_attention(query[:, 0], key, mask) if cls_row else None

    def _heads(self, x: Float[Array, "B N M"], parts: int) -> list[Float[Array, "B N heads d"]]:
        x = x.reshape(*x.shape[:2], parts, self.num_heads, -1)
        return [x[:, :, part] for part in range(parts)]


def rotate(qkv: Float[Array, "B M E"], angles: Float[Array, "#B M a"], num_heads: int) -> Float[Array, "B M E"]:
    """Rotates the query and key of each token by its angles (rotary positions); the value stays.

    Dimension i of a head and dimension i + d / 2 are rotated together, in float32.
    """
    halves = qkv.astype(jnp.float32).reshape(*qkv.shape[:2], 3, num_heads, 2, -1)
    first, second = halves[..., 0, :], halves[..., 1, :]
    of_parts = angles[:, :, None, None] * jnp.array([1, 1, 0])[:, None, None]
    cos, sin = jnp.cos(of_parts), jnp.sin(of_parts)
    both = jnp.stack([first * cos - second * sin, second * cos + first * sin], -2)
    return both.reshape(qkv.shape).astype(qkv.dtype)


def attend(
    query: Float[Array, "B Q heads d"],
    key: Float[Array, "B N heads d"],
    value: Float[Array, "B N heads d"],
    mask: Bool[Array, "#B 1 #Q N"] | None,
    causal: bool,
    kernel: Kernel,
) -> Float[Array, "B Q heads d"]:
    """Computes attention with a kernel; `mask` is that of `Attention`, and one that differs by query goes to XLA.

    XLA computes `jax.nn.dot_product_attention`, in programs for CPUs `attend_on_cpu`.
    """

    def plain(query: Array, key: Array, value: Array) -> Array:
        with matmul_precision(precision_of(query.dtype)):
            return jax.nn.dot_product_attention(query, key, value, mask=mask, is_causal=causal)

    def on_cpu(query: Array, key: Array, value: Array) -> Array:
        with matmul_precision(precision_of(query.dtype)):
            return attend_on_cpu(query, key, value, mask, causal)

    def fused(query: Array, key: Array, value: Array) -> Array:
        num_keys = None if mask is None else mask[:, 0, 0].sum(-1, dtype=jnp.int32)
        return attend_evenly(query, key, value, causal, "cudnn", num_keys)

    differs = mask is not None and mask.shape[2] > 1
    if kernel == "cudnn" and not differs:
        return fused(query, key, value)
    on_gpu = fused if kernel == "by platform" and not differs else plain
    attended: Array = jax.lax.platform_dependent(query, key, value, cpu=on_cpu, cuda=on_gpu, default=plain)
    return attended


def attend_on_cpu(
    query: Float[Array, "B Q heads d"],
    key: Float[Array, "B N heads d"],
    value: Float[Array, "B N heads d"],
    mask: Bool[Array, "#B 1 #Q N"] | None = None,
    causal: bool = False,
) -> Float[Array, "B Q heads d"]:
    """Computes softmax(Q K^T / sqrt(d)) V, with logits and softmax in float32, in the form that suits XLA on CPUs.

    The sums of the exponentials divide the result of d values a query, not the N exponentials. In comparison with
    `jax.nn.dot_product_attention` (197 tokens, 12 heads, a core of an Intel Xeon) it takes .4 of the time in float32,
    .22 in bfloat16, and with its gradient .7; but the compilers of TPUs and GPUs plan more memory for its gradient.
    """
    logits = jnp.einsum("bqhd,bnhd->bhqn", query, key, preferred_element_type=jnp.float32)
    if causal:
        first = jnp.tril(jnp.ones(logits.shape[2:], bool))
        mask = first if mask is None else mask & first
    if mask is not None:
        logits = jnp.where(mask, logits, jnp.finfo(jnp.float32).min)
    largest = jax.lax.stop_gradient(logits.max(-1, keepdims=True))
    exponentials = jnp.exp((logits - largest) * query.shape[-1] ** -0.5)
    sums = exponentials.sum(-1, keepdims=True)
    attended = jnp.einsum(
        "bhqn,bnhd->bhqd", exponentials.astype(value.dtype), value, preferred_element_type=jnp.float32
    )
    return (attended / sums).astype(value.dtype).swapaxes(1, 2)


def attend_evenly(
    query: Float[Array, "B Q heads d"],
    key: Float[Array, "B N heads d"],
    value: Float[Array, "B N heads d"],
    causal: bool,
    kernel: Literal["xla", "cudnn"],
    num_keys: Int[Array, "#B"] | None = None,
) -> Float[Array, "B Q heads d"]:
    """Computes attention to the first `num_keys` keys, by default all, with sequences padded to even lengths.

    A ViT has one token more than patches.  cuDNN takes odd lengths if there is no bias, but jax (up to 0.12.0 at least)
    replaces a missing bias by an empty array before it checks, and so rejects odd lengths in training.
    """
    lengths = [jnp.full(len(x), x.shape[1], jnp.int32) for x in (query, key)]
    if num_keys is not None:
        lengths[1] = jnp.broadcast_to(num_keys, len(key))
    even = [jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0))) for x in (query, key, value)]
    padded = num_keys is not None or query.shape[1] % 2 or key.shape[1] % 2
    filled = dict(zip(("query_seq_lengths", "key_value_seq_lengths"), lengths)) if padded else {}
    attended = jax.nn.dot_product_attention(*even, is_causal=causal, implementation=kernel, **filled)
    return attended[:, : query.shape[1]]


def cls_attention(
    query: Float[Array, "B heads d"], key: Float[Array, "B N heads d"], mask: Bool[Array, "#B 1 1 N"] | None = None
) -> Float[Array, "B N"]:
    """Computes softmax(q K^T / sqrt(d)) of one query, averaged over heads, in float32: the summand of eq. 9."""
    logits = jnp.einsum("bhd,bnhd->bhn", query, key, precision="highest", preferred_element_type=jnp.float32)
    logits = logits if mask is None else jnp.where(mask[:, 0], logits, jnp.finfo(jnp.float32).min)
    return jax.nn.softmax(logits.astype(jnp.float32) * query.shape[-1] ** -0.5).mean(1)


def choose_kernel(wanted: str, dtype: Any, head_width: int, platform: str | None = None) -> Kernel:
    """Chooses the attention kernel for devices of a platform: `wanted`; for "auto" cuDNN's fused kernel if it can run.

    Without a platform "auto" is "by platform" if cuDNN's can run: programs for GPUs take it, others XLA's attention.
    The choice is made when networks are built, and is logged; a fallback from "auto" to "xla" on a GPU is logged as
    a warning. Raises ValueError for an unknown kernel, and for "cudnn" if it cannot run.
    """
    if wanted not in KERNELS:
        raise ValueError(f"model.attention {wanted!r} is unknown; known: {', '.join(KERNELS)}")
    reason = "selected by model.attention" if wanted == "xla" else why_not_cudnn(dtype, head_width, platform or "gpu")
    if reason and wanted == "cudnn":
        raise ValueError(f"model.attention 'cudnn' cannot run: {reason}; 'auto' falls back to 'xla'")
    kernel: Kernel = "xla" if reason else "cudnn" if platform or wanted == "cudnn" else "by platform"
    fell_back = reason and wanted == "auto" and platform == "gpu"
    log = logging.warning if fell_back else logging.info
    log("attention of heads %d wide: %s%s", head_width, kernel, f" ({reason})" if reason else "")
    return kernel


def why_not_cudnn(dtype: Any, head_width: int, platform: str) -> str:
    """Returns the reason why cuDNN's attention cannot be used, or an empty string if it can."""
    if platform != "gpu":
        return f"the device is a {platform}"
    if dtype not in HALVES:
        return f"model.dtype {jnp.dtype(dtype).name} is not half precision"

    def attend(*heads: Array) -> Array:
        return jax.nn.dot_product_attention(*heads, implementation="cudnn").astype(jnp.float32).sum()

    heads = [jax.ShapeDtypeStruct((1, 8, 1, head_width), dtype)] * 3  # query, key and value
    try:
        jax.eval_shape(jax.grad(attend), *heads)
    except (RuntimeError, NotImplementedError, ValueError) as error:  # jax: no cuDNN or unsupported shape
        return str(error)
    return ""
