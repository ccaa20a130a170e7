"""One evaluation of a checkpoint: says what is measured, measures it, writes and prints the results, keeps a part."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax

from detailclip_jax import methods
from detailclip_jax.data import preprocessing
from detailclip_jax.dense import paper
from detailclip_jax.evaluation import results, runner, tasks
from detailclip_jax.evaluation.embedder import BATCH_SIZE
from detailclip_jax.evaluation.evaluation_sets import Sets
from detailclip_jax.evaluation.protocols import PROTOCOLS
from detailclip_jax.evaluation.subject import from_checkpoint
from detailclip_jax.evaluation.tasks import Task
from detailclip_jax.runtime import files, processes, signals
from detailclip_jax.runtime.progress import Console
from detailclip_jax.runtime.terminal import counted
from detailclip_jax.training.workdirs import pick_step

OUT = "evaluation"  # subfolder of the workdir; the step is appended
KEPT = "what was measured is kept, and the same command continues from there"


class Request(NamedTuple):
    """What to evaluate.

    checkpoint: workdir of a run; `step` is by default its newest one.
    tasks: the text that `tasks.parse` reads.
    weights, preprocess: as in `subject.from_checkpoint`.
    out: folder of the results; None for `OUT` in the workdir, with the step.
    sets, protocol, keep_embeddings, batch_size, compare: as in `runner.run_tasks`.
    """

    checkpoint: str
    tasks: str
    sets: Sets
    step: int | None = None
    weights: Sequence[str] | None = None
    preprocess: Mapping[str, Any] = MappingProxyType({})
    out: str | None = None
    protocol: str = PROTOCOLS[0]
    keep_embeddings: bool = True
    batch_size: int = BATCH_SIZE
    compare: str | None = None


def run(request: Request) -> int:
    """Loads the checkpoint, runs the tasks, writes and prints the results; returns the exit code.

    All processes of a job call this together.  Raises ValueError, FileNotFoundError or CheckpointError for an invalid
    request or an unreadable checkpoint.
    """
    asked = processes.agreed(lambda: tasks.parse(request.tasks, request.sets))
    step = processes.agreed(lambda: pick_step(request.checkpoint, request.step))
    given = step, request.weights, request.preprocess
    measured = processes.agreed(lambda: from_checkpoint(request.checkpoint, *given))
    out = Path(request.out or Path(request.checkpoint) / f"{OUT}-{measured.step}")
    console = Console(enabled=jax.process_index() == 0)
    console.say("\n".join(introduction(measured, asked, request, out)))
    processes.agreed(lambda: files.check_writable(out) if jax.process_index() == 0 else None)
    with processes.leaving_at_once(), processes.together(), noting_what_is_kept(out):
        outcome = runner.run_tasks(
            measured,
            asked,
            request.sets._replace(image_size=measured.transform.size),
            protocol=request.protocol,
            out=out,
            keep_embeddings=request.keep_embeddings,
            batch_size=request.batch_size,
            compare=request.compare,
            console=console,
        )
    console.say(f"\n{results.screen(outcome)}\n")
    console.say(f"written to {out}: {', '.join(results.FILES)}" if outcome.records else "nothing was measured")
    return outcome.exit_code


@contextlib.contextmanager
def noting_what_is_kept(out: Path) -> Iterator[None]:
    """Context that adds to an error, and to what a signal prints: results in `out` are kept, if there are any."""

    def kept() -> str:
        with contextlib.suppress(OSError):
            return KEPT if any(out.iterdir()) else ""
        return ""

    try:
        with signals.if_ended(kept):
            yield
    except BaseException as error:
        if note := kept():
            error.add_note(note)
        raise


def introduction(measured: Any, asked: Sequence[Task], request: Request, out: Path) -> Iterator[str]:
    """Yields lines that describe the evaluation: checkpoint, weights, preprocessing, tasks and folders.

    `measured` is the `Subject` of a checkpoint, which has a config.
    """
    weights, usual = " and ".join(measured.weights), methods.build(measured.config).weights
    own = f"; published numbers of this method use the {usual} weights" if len(measured.weights) > 1 else ""
    yield f"{measured.method}, step {measured.step:,} of {measured.name}: {weights} weights{own}"
    yield f"preprocess: {preprocessing.description(measured.config)}"
    count = counted(len(asked), "task")
    yield f"{count}, protocol {request.protocol}, sets on disk: {request.sets.data_dir}; results: {out}"
    if request.compare == "published" and not any(task.kind == "dense" for task in asked):
        yield "published numbers exist for dense tasks only, such as --tasks=dense:voc21:sclip; --tasks has none"
    if request.compare == "paper" and measured.method not in paper.PRINTED_NAMES:
        yield f"the paper's tables 2 and 3 lack {measured.method}; they have {', '.join(paper.PRINTED_NAMES)}"
