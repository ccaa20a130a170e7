"""The one protocol of evaluators: what measures a property of a set of weights.

A user's own evaluator is one small class:

    class MeanAttention:
        needs = ("image",)                      # networks that the evaluator requires in the parameters

        def __init__(self, encode, *, batches):
            self.encode, self.batches = encode, batches

        def run(self, params):
            look = lambda batch: self.encode.attention(params, batch["image"])
            yield "attention", float(batching.gather(look, self.batches, batching.mesh_of(params)).mean())

    mine = MeanAttention(experiment.encode, batches=batches)
    evaluation.run({"mine": mine}, evaluation.all_weights(state), step=600)
    # {"mine/student/attention": 0.015, "mine/ema/attention": 0.015}

`run` is the call of the training loop and of the command `evaluate` too. A feature that `encode` lacks is a function of
(networks, batch), compiled by `encode.jit`.

An evaluator that runs by name, in training and in the command `evaluate`, is a function (setting, set) -> SetEvaluator
and a line in the table `tasks.KINDS`.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from ml_collections import ConfigDict

from detailclip_jax.data.labelled import LabelledSet
from detailclip_jax.data.preprocessing import Transform
from detailclip_jax.evaluation.embedder import Embedder
from detailclip_jax.evaluation.evaluation_sets import Sets
from detailclip_jax.evaluation.metrics import Metric
from detailclip_jax.evaluation.protocols import PROTOCOLS
from detailclip_jax.types import Params

Measured = Iterator[tuple[str, Metric]]
JOINT = ("image", "image_projection", "text", "text_projection")


@runtime_checkable
class Evaluator(Protocol):
    """Measures one property of any parameters; `needs` names the networks that `params` must contain."""

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of networks."""
        ...

    def run(self, params: Params, /) -> Iterator[tuple[str, float]]:
        """Yields (metric, value). A value may be a `metrics.Metric`, which also holds chance level and interval."""
        ...


@dataclasses.dataclass(frozen=True)
class SetEvaluator:
    """An evaluator on a set whose data are open. It can run any number of times.

    data: its fingerprint and expected size identify what was measured.
    protocol: one line for the records of results.
    embedder: counts unreadable images and cut texts, and keeps embeddings for evaluators on the same set; or None.
    """

    needs: tuple[str, ...]
    run: Callable[[Params], Measured]
    data: LabelledSet
    protocol: str
    embedder: Embedder | None = None


class Setting(NamedTuple):
    """What the evaluators of one evaluation share.

    transform: of the model's images.
    config: of the run; None for a model of another library, which has no patch tokens and no masks.
    top: the k of top-k and of R@k; None for the usual ones of each kind.
    """

    embedder: Embedder
    sets: Sets
    transform: Transform
    protocol: str = PROTOCOLS[0]
    config: ConfigDict | None = None
    top: tuple[int, ...] | None = None


class Kind(NamedTuple):
    """A kind of evaluator.

    build: (setting, set) -> the evaluator. Raises MissingData, ValueError for a set that it cannot use, and
        NotApplicable for a model without the output that it measures.
    sets: (kind, name, Sets) -> the sets that a name in `--tasks` stands for. Raises ValueError for a name that the kind
        does not know.
    note: a sentence for the end of the tables.
    example: a set, for messages.
    """

    build: Callable[[Setting, str], SetEvaluator]
    sets: Callable[[str, str, Sets], Sequence[str]]
    note: str
    example: str = "pets"
