"""Operations and memory traffic of the pieces that every network here is made of, counted on paper.

A matrix product of [m, k] and [k, n] counts 2 m k n operations; everything else counts one per element and operation,
as XLA counts it.
"""

import dataclasses
from collections.abc import Iterable

Number = int | float

OPS = {  # one element of: forward alone, forward and backward; as XLA counts each function alone
    "gelu": (4, 10),  # erf and exp count as transcendental, which is another number
    "quick_gelu": (5, 11),
    "norm": (7, 20),
    "softmax": (5, 12),  # scaled, as in attention
    "bias": (1, 2),
    "branch": (1, 2),  # a residual branch
    "divergence": (10, 22),  # temperature, log-softmax, cross-entropy and entropy of a logit; estimated
}
ADAMW_OPS, EMA_OPS = 18, 3  # per parameter: moments, their corrections, decay and update, the gradient's norm
ADAMW_NUMBERS, EMA_NUMBERS = 7, 3  # read and written per parameter: p, m, v, gradient; teacher, its source


@dataclasses.dataclass(frozen=True)
class Work:
    """What one pair costs; `weights` alone is per step and shared by the batch.

    `forward` and `backward` are operations of matrix products, `elementwise` all others.  `values` and `weights` count
    the numbers that the products read and write if nothing between them touches memory: a lower bound.
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
        """Bytes per pair, of numbers of `itemsize` bytes."""
        return itemsize * (self.values + self.weights / batch)

    def __add__(self, other: "Work") -> "Work":
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other))
        return Work(*(mine + theirs for mine, theirs in pairs))

    def __mul__(self, times: Number) -> "Work":
        return Work(*(times * mine for mine in dataclasses.astuple(self)))


def total(works: Iterable[Work]) -> Work:
    """The sum."""
    return sum(works, Work())


def pointwise(kind: str, elements: Number, trained: bool) -> Work:
    """An elementwise operation of `OPS`."""
    return Work(elementwise=elements * OPS[kind][trained])


def product(rows: Number, inner: int, outer: int, backward: int = 2, bias: bool = True) -> Work:
    """[rows, inner] times a weight [inner, outer].

    `backward` 2: the gradients of input and weight; 1: of the weight alone, where nothing below is trained; 0: none.
    """
    forward, passes = 2 * rows * inner * outer, 1 + backward
    made = Work(forward, backward * forward, 0.0, passes * rows * (inner + outer), passes * inner * outer)
    return made + pointwise("bias", rows * outer * bias, backward > 0)


def attention(count: Number, queries: int, keys: int, width: int, heads: int, trained: bool) -> Work:
    """Scores, softmax and weighted sum of `count` sequences; the scores stay on the chip."""
    forward, backward = 4 * count * queries * keys * width, 2 * trained
    values = 2 * count * (queries + keys) * width * (1 + backward)
    softmax = pointwise("softmax", count * queries * keys * heads, trained)
    return Work(forward, backward * forward, 0.0, values) + softmax


def mlp(rows: Number, width: int, activation: str, trained: bool) -> Work:
    """Two products around an activation, four times as wide inside."""
    backward = 2 * trained
    layers = product(rows, width, 4 * width, backward) + product(rows, 4 * width, width, backward)
    return layers + pointwise(activation, 4 * rows * width, trained)


def block(
    count: Number, tokens: int, read: int, width: int, heads: int, activation: str = "gelu", trained: bool = True
) -> Work:
    """A pre-norm transformer block on `count` sequences of `tokens`, computed for `read` of them."""
    rows, asked, backward = count * tokens, count * read, 2 * trained
    norms = pointwise("norm", (rows + asked * (1 + (read < tokens))) * width, trained)
    keys = product(rows, width, 2 * width, backward)
    linear = product(asked, width, width, backward) * 2  # queries, and the product behind the attention
    mixed = attention(count, read, tokens, width, heads, trained)
    branches = pointwise("branch", 2 * asked * width, trained)
    return total((norms, keys, linear, mixed, mlp(asked, width, activation, trained), branches))
