"""A linear probe: multinomial logistic regression on frozen features, fitted by L-BFGS."""

import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging
from jaxtyping import Array, Float, Int

from detailclip_jax.evaluation.classification import score_metrics
from detailclip_jax.evaluation.metrics import BLOCK, Metric
from detailclip_jax.runtime.signals import pause_point

STRENGTHS = tuple(10.0**power for power in range(-3, 4))  # C
VALIDATION_SHARE = 0.2
MAX_STEPS, TOLERANCE = 1000, 1e-4
CALL_SECONDS = 1.0  # a call of the compiled search that took less does twice as many steps next
MAX_SCORES = 2**26  # entries of a matrix of scores in memory, 256 MiB in float32; more examples are taken in blocks
MAX_STEP_SECONDS = 10.0  # with slower steps a probe may take a day: 8 searches of up to 1,000 steps
SOLVER = optax.lbfgs()


class Linear(NamedTuple):
    """A fitted linear map: scores = features @ weights + bias."""

    weights: Float[np.ndarray, "D C"]
    bias: Float[np.ndarray, "C"]
    gradient: float = 0.0  # its largest absolute entry at the end of the search

    def __call__(self, features: Float[np.ndarray, "n D"]) -> Float[np.ndarray, "n C"]:
        """The scores of all classes; the prediction is the class with the highest one."""
        return features @ self.weights + self.bias

    @property
    def remark(self) -> str:
        """A warning if the search did not converge, else an empty string."""
        if self.gradient <= TOLERANCE:
            return ""
        where = f"largest gradient {self.gradient:.1g}, tolerance {TOLERANCE:g}"
        return f"the linear probe did not converge in {MAX_STEPS:,} steps ({where}): its accuracy may be too low"


def linear_metrics(
    train: Float[np.ndarray, "n D"],
    train_labels: Int[np.ndarray, "n"],
    test: Float[np.ndarray, "m D"],
    test_labels: Int[np.ndarray, "m"],
    num_classes: int,
    *,
    metric: str = "accuracy",
    strengths: Sequence[float] = STRENGTHS,
) -> Iterator[tuple[str, Metric]]:
    """Yields the metric of the set and top-k of a probe; its C is the best one on a fifth of the training set.

    Features are standardised with the mean and standard deviation of the training set. The test set is evaluated once.
    """
    mean, std = train.mean(0), np.maximum(train.std(0), 1e-6)
    train, test = (train - mean) / std, (test - mean) / std
    logging.info("fitting linear probes with %d values of C on %s features", len(strengths), f"{len(train):,}")
    strength = choose(train, train_labels, num_classes, strengths)
    probe = fit(train, train_labels, num_classes, strength)
    blocks = ((slice(i, min(i + BLOCK, len(test))), probe(test[i : i + BLOCK])) for i in range(0, len(test), BLOCK))
    for name, value in score_metrics(blocks, test_labels, num_classes, metric):
        value.remark = probe.remark
        yield name, value


def choose(
    features: Float[np.ndarray, "n D"], labels: Int[np.ndarray, "n"], num_classes: int, strengths: Sequence[float]
) -> float:
    """The C with the highest accuracy on a random fifth of the examples (fixed seed); the smallest one in a tie."""
    order = np.random.default_rng(0).permutation(len(features))
    held_out, kept = np.split(order, [max(1, round(VALIDATION_SHARE * len(order)))])
    if len(strengths) == 1 or not len(kept):
        return strengths[0]
    fitted, judged = ((features[rows], labels[rows]) for rows in (kept, held_out))
    accuracies, start = [], None
    for strength in sorted(strengths):
        start = fit(*fitted, num_classes, strength, start)
        accuracies.append((start(judged[0]).argmax(1) == judged[1]).mean())
    return sorted(strengths)[int(np.argmax(accuracies))]


def fit(
    features: Float[np.ndarray, "n D"],
    labels: Int[np.ndarray, "n"],
    num_classes: int,
    strength: float,
    start: Linear | None = None,
) -> Linear:
    """The minimum of 1/2 |W|^2 + C sum_i -log softmax(W x_i + b)[y_i], as in scikit-learn's LogisticRegression(C).

    The bias is not penalised. `start` is the initial point of the search: another fit, or zeros. Scores of all examples
    and classes need not fit in memory, see `summed_loss`. Logs a warning if the steps take so long that the search may
    take a day. L-BFGS runs on the objective per example, until the largest absolute entry of its gradient is at most
    TOLERANCE, or for MAX_STEPS. A signal stops it within about two seconds, or after the step that is running.
    """
    start = start or Linear(np.zeros((features.shape[1], num_classes)), np.zeros(num_classes))
    first = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), (start.weights, start.bias))
    arrays = jnp.asarray(features, jnp.float32), jnp.asarray(labels), jnp.float32(strength)
    state = jax.tree.map(lambda x: jnp.asarray(x, x.dtype), SOLVER.init(first))  # weak types would compile twice
    search = first, state, jnp.int32(0), jnp.float32(jnp.inf)
    until, steps, calls = 0, 1, 0
    while until < MAX_STEPS and float(search[3]) > TOLERANCE:  # dividing the steps into calls changes no number
        pause_point()
        until, began = min(until + steps, MAX_STEPS), time.monotonic()
        search = jax.block_until_ready(_search(search, *arrays, jnp.int32(until)))
        seconds, calls = time.monotonic() - began, calls + 1
        if calls == 2 and seconds / steps > MAX_STEP_SECONDS:  # the first call compiles
            logging.warning(
                f"the linear probe takes {seconds / steps:.0f} s per step, on {len(features):,} features of width "
                f"{features.shape[1]} and {num_classes:,} classes, and each of its searches may take {MAX_STEPS:,} "
                "steps: fit it on fewer examples with --num-train-examples, or on a GPU"
            )
        steps = 2 * steps if seconds < CALL_SECONDS else steps
    (weights, bias), gradient = search[0], search[3]
    return Linear(np.asarray(weights), np.asarray(bias), float(gradient))


@jax.jit
def _search(search: Any, features: Array, labels: Array, strength: Array, until: Array) -> Any:
    """Runs L-BFGS up to step `until`, or to TOLERANCE; `search` is (solution, solver state, step, gradient)."""

    def objective(linear: Any) -> Array:
        return (summed_loss(linear, features, labels) + 0.5 / strength * jnp.sum(linear[0] ** 2)) / len(labels)

    value_and_grad = optax.value_and_grad_from_state(objective)

    def step(carry: Any) -> Any:
        linear, state, count, _ = carry
        value, gradient = value_and_grad(linear, state=state)
        updates, state = SOLVER.update(gradient, state, linear, value=value, grad=gradient, value_fn=objective)
        return optax.apply_updates(linear, updates), state, count + 1, optax.tree.max(jax.tree.map(jnp.abs, gradient))

    def unfinished(carry: Any) -> Array:
        return (carry[2] < until) & (carry[3] > TOLERANCE)

    return jax.lax.while_loop(unfinished, step, search)


def summed_loss(linear: tuple[Array, Array], features: Array, labels: Array) -> Array:
    """The cross-entropy of scores = features @ weights + bias, summed over the examples.

    Where the scores have more than MAX_SCORES entries, examples are taken in blocks, whose scores are computed again
    for the gradient: value and gradient differ from those of all examples at once by rounding only.
    """
    num = len(labels)
    rows = max(1, MAX_SCORES // linear[0].shape[1])
    if num <= rows:
        return losses(linear, features, labels).sum()

    @jax.checkpoint
    def add(total: Array, first: Array) -> tuple[Array, None]:
        start = jnp.minimum(first, num - rows)  # the last block is full too: it begins among rows that are counted
        block = (jax.lax.dynamic_slice_in_dim(array, start, rows) for array in (features, labels))
        new = start + jnp.arange(rows) >= first
        return total + jnp.where(new, losses(linear, *block), 0).sum(), None

    return jax.lax.scan(add, jnp.float32(0), jnp.arange(0, num, rows))[0]


def losses(linear: tuple[Array, Array], features: Array, labels: Array) -> Array:
    """The cross-entropy of each example."""
    scores = jnp.matmul(features, linear[0], precision="highest") + linear[1]
    return optax.softmax_cross_entropy_with_integer_labels(scores, labels)
