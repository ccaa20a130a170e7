"""Theoretical operations and memory traffic of the layers of all networks.

A matrix product of [m, k] and [k, n] counts 2 m k n operations. All other functions count one per element and
operation, as in XLA's count.
"""

import dataclasses
from collections.abc import Iterable

Number = int | float

OPS = {  # per element: (forward, forward and backward), as XLA counts each function by itself
    "gelu": (4, 10),  # without erf and exp, which XLA counts separately as transcendental
    "quick_gelu": (5, 11),
    "norm": (7, 20),
    "softmax": (5, 12),  # scaled, as in attention
    "bias": (1, 2),
    "branch": (1, 2),  # a residual branch
    "divergence": (10, 22),  # temperature, log-softmax, cross-entropy and entropy of a logit; estimated
}
ADAMW_OPS, EMA_OPS = 18, 3  # per parameter: moments, their corrections, decay and update, the gradient's norm
ADAMW_NUMBERS, EMA_NUMBERS = 7, 3  # values read and written per parameter: p, m, v, gradient; teacher, its source


@dataclasses.dataclass(frozen=True)
class Work:
    """The cost of one pair; only `weights` is per step and shared by the batch.

    `forward` and `backward` are operations of matrix products, `elementwise` all others. `values` and `weights` count
    the numbers that the products read and write if no intermediate result is stored in memory: a lower bound.
    """

    forward: Number = 0.0
    backward: Number = 0.0
    elementwise: Number = 0.0
    values: Number = 0.0
    weights: Number = 0.0

    @property
    def products(self) -> Number:
        """Operations of matrix products."""
        return self.forward + self.backward

    @property
    def flops(self) -> Number:
        """All operations."""
        return self.products + self.elementwise

    def traffic(self, batch: int, itemsize: int) -> Number:
        """Bytes per pair, for numbers of `itemsize` bytes."""
        return itemsize * (self.values + self.weights / batch)

    def __add__(self, other: "Work") -> "Work":
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other))
        return Work(*(mine + theirs for mine, theirs in pairs))

    def __mul__(self, times: Number) -> "Work":
        return Work(*(times * mine for mine in dataclasses.astuple(self)))


def total(works: Iterable[Work]) -> Work:
    """The sum of several works."""
    return sum(works, Work())


def pointwise(kind: str, elements: Number, trained: bool) -> Work:
    """The work of an elementwise operation in `OPS`."""
    return Work(elementwise=elements * OPS[kind][trained])


def product(rows: Number, inner: int, outer: int, backward: int = 2, bias: bool = True) -> Work:
    """The work of [rows, inner] times a weight [inner, outer].

    `backward` is 2 for the gradients of input and weight, 1 for that of the weight only (if nothing below is trained),
    and 0 for none.
    """
    forward, passes = 2 * rows * inner * outer, 1 + backward
    work = Work(forward, backward * forward, 0.0, passes * rows * (inner + outer), passes * inner * outer)
    return work + pointwise("bias", rows * outer * bias, backward > 0)


def attention(count: Number, queries: int, keys: int, width: int, heads: int, trained: bool) -> Work:
    """The work of scores, softmax and weighted sum for `count` sequences; the scores are not written to memory."""
    forward, backward = 4 * count * queries * keys * width, 2 * trained
    values = 2 * count * (queries + keys) * width * (1 + backward)
    softmax = pointwise("softmax", count * queries * keys * heads, trained)
    return Work(forward, backward * forward, 0.0, values) + softmax


def mlp(rows: Number, width: int, activation: str, trained: bool) -> Work:
    """The work of two products with an activation between them; the hidden width is four times the width."""
    backward = 2 * trained
    layers = product(rows, width, 4 * width, backward) + product(rows, 4 * width, width, backward)
    return layers + pointwise(activation, 4 * rows * width, trained)


def block(
    count: Number, tokens: int, num_queries: int, width: int, heads: int, activation: str = "gelu", trained: bool = True
) -> Work:
    """The work of a pre-norm block on `count` sequences of `tokens`, computed for `num_queries` tokens of each."""
    rows, queries, backward = count * tokens, count * num_queries, 2 * trained
    norms = pointwise("norm", (rows + queries * (1 + (num_queries < tokens))) * width, trained)
    keys = product(rows, width, 2 * width, backward)
    linear = product(queries, width, width, backward) * 2  # queries, and the output projection of the attention
    mixed = attention(count, num_queries, tokens, width, heads, trained)
    branches = pointwise("branch", 2 * queries * width, trained)
    return total((norms, keys, linear, mixed, mlp(queries, width, activation, trained), branches))
