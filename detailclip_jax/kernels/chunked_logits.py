"""Prototype logits, stored as the two factors of their product, and sums over functions of them, chunk by chunk."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from detailclip_jax.kernels import chunks
from detailclip_jax.kernels.products import product
from detailclip_jax.types import Array, Float, PyTree, Scalar

Equation = Callable[[Array, Array, PyTree], Mapping[str, Float[Array, "m"]]]
LOSS = "loss"  # the entry of an equation's result that has a gradient


CPU_CHUNK = 3 * 2**20  # logits: 12 MiB in float32
LOGIT_BYTES = 20  # of one logit in a chunk: student, teacher, both softmaxes and the gradient, in float32
MEMORY_SHARE = 75  # a chunk takes at most 1 / 75 of a device's memory


def automatic_chunk_logits(memory: int = 0) -> int:
    """Returns how many prototype logits of student or teacher are computed at a time on devices with so much memory.

    On a GPU or TPU it is the largest power of two whose arrays take at most 1 / 75 of the memory that jax may use: 2^25
    with 80 GB, 2^23 with 16 GB. Larger chunks are larger products and fewer turns of a loop; a CPU, whose `memory` is
    0, gains nothing from them.
    """
    return 2 ** int(math.log2(memory / MEMORY_SHARE / LOGIT_BYTES)) if memory else CPU_CHUNK


class Logits(struct.PyTreeNode):
    """Prototype logits [*batch, C], stored as the factors of the product bottleneck . prototypes^T.

        logits = Logits(bottleneck, prototypes)
        logits[0]                                   # logits of bottleneck[0], in float32
        logits.shape == (*bottleneck.shape[:-1], len(prototypes))

    With 8192 prototypes the logits would be the largest arrays of a step, so losses compute them chunk by chunk. The
    product is computed in `dtype`, with sums in float32.
    """

    bottleneck: Float[Array, "*batch F"]
    prototypes: Float[Array, "C F"]
    dtype: Any = struct.field(pytree_node=False, default=jnp.float32)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the logits."""
        return (*self.bottleneck.shape[:-1], self.prototypes.shape[0])

    def __getitem__(self, index: Any) -> Float[Array, "*some C"]:
        """Computes the logits of the tokens `bottleneck[index]`, in float32; `logits[...]` computes all."""
        return product(self.bottleneck[index], self.prototypes.T, self.dtype, jnp.float32)

    def mean(self) -> Float[Array, "C"]:
        """Computes the mean over all tokens in float32: by linearity, the logits of the mean bottleneck."""
        mean = self.bottleneck.mean(tuple(range(self.bottleneck.ndim - 1)))
        return jnp.matmul(mean.astype(jnp.float32), self.prototypes.T, precision="highest")

    def flat(self) -> "Logits":
        """Returns the logits as [n, C], with all leading axes flattened."""
        return self.replace(bottleneck=self.bottleneck.reshape(-1, self.bottleneck.shape[-1]))


def chunked_sums(
    equation: Equation,
    student: Logits,
    teacher: Logits,
    fixed: PyTree,
    weights: Mapping[str, Float[Array, "n"]],
    chunk_logits: int,
    axis: int = 0,
) -> tuple[Scalar, dict[str, Scalar]]:
    """Computes the weighted sums over n items of the values that `equation` returns for them, in chunks of items.

        value_name = sum_i weights[name]_i equation(student, teacher, fixed)[name]_i

    `axis` of student and teacher counts the items. `equation` gets the logits of m items in float32 and returns arrays
    [m]; its "loss" is the first result, and the dictionary has the others. At most `chunk_logits` logits of the student
    exist at a time, but at least those of one item. Only the loss has a gradient, and only with respect to the student.
    """

    def term(prototypes: Array, constants: PyTree, items: Array, per_item: PyTree) -> tuple[Scalar, dict[str, Scalar]]:
        (teacher_prototypes, fixed), (targets, weights) = constants, per_item
        student_logits = Logits(jnp.moveaxis(items, 0, axis), prototypes, student.dtype)[...]
        teacher_logits = Logits(jnp.moveaxis(targets, 0, axis), teacher_prototypes, student.dtype)[...]
        values = equation(student_logits, teacher_logits, fixed)
        sums = {name: jnp.dot(weight, values[name], precision="highest") for name, weight in weights.items()}
        return sums.pop(LOSS), sums

    items, targets = (jnp.moveaxis(logits.bottleneck, axis, 0) for logits in (student, teacher))
    size = max(1, chunk_logits * len(items) // math.prod(student.shape))
    items, *per_item = chunks.split((items, targets, dict(weights)), size)
    constants, per_item = jax.lax.stop_gradient(((teacher.prototypes, fixed), tuple(per_item)))
    return chunks.total(term, student.prototypes, constants, items, per_item)
