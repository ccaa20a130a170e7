"""Which read-out names the patches of a checkpoint best: the records of `dense`, compared and kept in the workdir."""

from collections.abc import Iterator, Sequence

from detailclip_jax.evaluation.readout_sets import split_name
from detailclip_jax.evaluation.results import Outcome, Record
from detailclip_jax.inference import readout_choice
from detailclip_jax.inference.readout_choice import Choice

METRIC = "mean_iou"


def best(records: Sequence[Record], weights: str) -> Choice | None:
    """The read-out with the highest mean IoU of these weights, None if no two were measured on one set.

    With several such sets it is the mean over them, of the read-outs that all of them have.
    """
    found: dict[str, dict[str, float]] = {}
    for one in records:
        if (one["task"], one["weights"], one["metric"]) == ("dense", weights, METRIC):
            dataset, readout = split_name(one["dataset"])
            found.setdefault(dataset, {})[str(readout)] = one["value"]
    sets = {name: values for name, values in found.items() if len(values) > 1}
    common = [name for name in next(iter(sets.values()), {}) if all(name in values for values in sets.values())]
    if len(common) < 2:
        return None
    means = {name: sum(values[name] for values in sets.values()) / len(sets) for name in common}
    order = sorted(means, key=means.__getitem__, reverse=True)
    return Choice(order[0], tuple(sets), {name: means[name] for name in order})


def keep(outcome: Outcome) -> Iterator[str]:
    """Stores the best read-out of each set of weights in the workdir; yields a line about each."""
    subject = outcome.subject
    for weights in subject.weights:
        if subject.config is None or (choice := best(outcome.records, weights)) is None:
            continue
        values = ", ".join(f"{name} {100 * value:.1f}" for name, value in choice.mean_iou.items())
        yield f"mIoU of the read-outs on {', '.join(choice.sets)}, {weights} weights: {values}"
        try:
            readout_choice.write(subject.name, subject.step, weights, choice)
        except OSError as error:
            yield f"{choice.readout} is the best, but cannot be stored in {subject.name}: {error}"
            continue
        yield f"{choice.readout} is now the default of this checkpoint (stored in {subject.name}/{readout_choice.FILE})"
