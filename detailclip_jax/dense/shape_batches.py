"""Batches of one shape, computed for images of many: a program is compiled once per shape, and the order stays."""

from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

Part = tuple[np.ndarray, ...]  # the arguments of one row of a batch


def in_batches(
    compute: Callable[..., Any], items: Iterable[tuple[Any, Sequence[Part]]], batch_size: int
) -> Iterator[tuple[Any, list[Any]]]:
    """Yields every item, in order, with the results of its parts, which have one shape.

    `compute` gets arrays of exactly `batch_size` rows, parts of one shape of one or several items; a batch that is not
    full repeats its first row.  It returns a tree of arrays.
    """
    waiting: deque[tuple[Any, list[Any]]] = deque()  # a result is None until it is computed
    queues: dict[Any, list[tuple[list[Any], int, Part]]] = defaultdict(list)  # by shapes; where the result belongs

    def run(queue: list[tuple[list[Any], int, Part]]) -> None:
        batch = queue[:batch_size]
        del queue[:batch_size]
        rows = [part for _, _, part in batch]
        rows += rows[:1] * (batch_size - len(rows))
        outputs = jax.tree.map(np.asarray, compute(*map(np.stack, zip(*rows))))
        for row, (results, number, _) in enumerate(batch):
            results[number] = jax.tree.map(lambda array, row=row: array[row], outputs)

    def run_all() -> None:
        for queue in queues.values():
            while queue:
                run(queue)

    for item, parts in items:
        results: list[Any] = [None] * len(parts)
        waiting.append((item, results))
        queue = queues[tuple(array.shape for array in parts[0])]
        queue += [(results, number, part) for number, part in enumerate(parts)]
        while len(queue) >= batch_size:
            run(queue)
        if len(waiting) > 4 * batch_size:  # a rare shape holds the others up
            run_all()
        while waiting and all(result is not None for result in waiting[0][1]):
            yield waiting.popleft()
    run_all()
    yield from waiting
