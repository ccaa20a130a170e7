"""Which read-out names the patches of a checkpoint best: the records of `dense`, compared and kept in the workdir."""

from collections.abc import Iterator, Mapping, Sequence

from detailclip_jax.evaluation.readout_sets import split_name
from detailclip_jax.evaluation.results import Outcome, Record
from detailclip_jax.inference import readout_choice
from detailclip_jax.inference.readout_choice import Choice

MOST_INVERTED = 0.5  # of the words, for a read-out to be chosen


def best(records: Sequence[Record], weights: str) -> Choice | None:
    """The best read-out of these weights, None if no two were measured on one set.

    It has the highest mean IoU of those with at most half of the words inverted (`readout_scores.inverted_pairs`), or
    of all if there is none. With several sets it is by means over them, of the read-outs that all of them have.
    """
    mean_iou, inverted = (means(records, weights, metric) for metric in ("mean_iou", "inverted"))
    if len(mean_iou) < 2:
        return None
    order = sorted(mean_iou, key=mean_iou.__getitem__, reverse=True)
    upright = [name for name in order if inverted.get(name, 0.0) <= MOST_INVERTED]
    return Choice((upright or order)[0], sets_of(records, weights), {name: mean_iou[name] for name in order}, inverted)


def sets_of(records: Sequence[Record], weights: str) -> tuple[str, ...]:
    """The sets on which several read-outs were measured with these weights."""
    return tuple(name for name, values in by_set(records, weights, "mean_iou").items() if len(values) > 1)


def means(records: Sequence[Record], weights: str, metric: str) -> dict[str, float]:
    """The mean of a metric over these sets, of the read-outs that all of them have."""
    measured = by_set(records, weights, metric)
    sets = [measured.get(name, {}) for name in sets_of(records, weights)]
    common = [name for name in (sets[0] if sets else ()) if all(name in values for values in sets)]
    return {name: sum(values[name] for values in sets) / len(sets) for name in common}


def by_set(records: Sequence[Record], weights: str, metric: str) -> Mapping[str, dict[str, float]]:
    """The values of a metric by set and read-out."""
    values: dict[str, dict[str, float]] = {}
    for one in records:
        if (one["task"], one["weights"], one["metric"]) == ("dense", weights, metric):
            dataset, readout = split_name(one["dataset"])
            values.setdefault(dataset, {})[str(readout)] = one["value"]
    return values


def keep(outcome: Outcome) -> Iterator[str]:
    """Stores the best read-out of each set of weights in the workdir; yields lines about it."""
    subject = outcome.subject
    for weights in subject.weights:
        if subject.config is None or (choice := best(outcome.records, weights)) is None:
            continue
        values = ", ".join(
            f"{name} {100 * value:.1f} ({100 * choice.inverted.get(name, 0.0):.0f})"
            for name, value in choice.mean_iou.items()
        )
        where = f"{', '.join(choice.sets)}, {weights} weights"
        yield f"mIoU of the read-outs on {where} (per cent of inverted words): {values}"
        try:
            readout_choice.write(subject.name, subject.step, weights, choice)
        except OSError as error:
            yield f"{choice.readout} is the best, but cannot be stored in {subject.name}: {error}"
            continue
        yield f"{choice.readout} is now the default of this checkpoint (stored in {subject.name}/{readout_choice.FILE})"
