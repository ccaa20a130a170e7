"""Evaluates a checkpoint on named data sets: zero-shot, retrieval, choice of captions, k-NN and linear probes.

    python -m detailclip_jax.evaluate --checkpoint=runs/stickers                        # needs no data on disk
    python -m detailclip_jax.evaluate --checkpoint=runs/vitb16_yfcc --tasks=paper --data-dir=/data --compare=paper
    python -m detailclip_jax.evaluate --checkpoint=runs/vitb16_yfcc --data-dir=/data \\
        '--tasks=zero_shot:imagenet,pets;retrieval:coco,flickr30k;knn:pets;linear:pets'

TASKS is a list separated by semicolons, each entry KIND:SET,SET,... (quote it, because the shell splits at ;):

  zero_shot    classify an image by the class whose prompts have the nearest embedding
  retrieval    find an image's captions among all captions, and images by captions (R@1, R@5, R@10)
  choice       choose the caption that fits an image, or a box of it, among a few
  box_class    classify boxes by features of the whole image that are pooled in them: coco, lvis
  knn          k nearest neighbours in the training split, on the class token
  linear       logistic regression on the class token, fitted on the training split
  kept_objects only on stickers: patches of high attention that touch an object
  segmentation only on stickers: linear segmentation of the patch tokens
  dense        training-free segmentation by class names, as SET or SET:READOUT, see below

  stickers   as a task: zero_shot, retrieval, choice, knn, linear, kept_objects, segmentation
             on the embedded scenes, no download.  As sets: stickers, stickers_pairs (pairs of nouns that do not occur
             together in training; retrieval), stickers_style (another artist's drawings, see --style), stickers_white
             (one drawing on plain white; not for retrieval), stickers_long (captions of several sentences; retrieval)
  paper      as a task: the paper's tables 2 and 3.  As a set: the paper's sets of that kind, as in zero_shot:paper;
             "all" means all sets of that kind
  detail     as a task: which caption fits, long captions, words on patches and boxes, on stickers and on the sets that
             are in --data-dir; writes the page OUT/detail.md, with the numbers published for the model beside

Sets of choice: stickers, winoground, sugarcrepe, sugarcrepe_pp, mmvp_vlm, aro_relation, aro_attribution,
      aro_coco_order, aro_flickr_order, fg_ovd.

dense:SET:READOUT compares class names with patch features after a change to the last block.  Read-outs: plain,
maskclip, maskclip_bare, sclip, naclip, clearclip, gem, tips.  SET:all compares them, and so does SET alone as long as
none was found best for this checkpoint.  The best is stored in the workdir, and is from then on what SET alone, demo,
visualize and Model.dense take.  SET:default takes it too, and before that naclip (plain for dinotxt).  Sets: stickers,
voc20, voc21, context59, context60, coco_object, coco_stuff171, ade150, cityscapes (docs/evaluation.md lists their
folders), or folder:PATH with images/val, masks/val and classes.txt.

Sets: imagenet, sun397, aircraft, dtd, pets, flowers, gtsrb, mnist, stl10, kitti_distance, country211, patch_camelyon,
      clevr_counts, rendered_sst2, food101, cifar10, cifar100, birdsnap, cub200, hateful_memes,
      kinetics700_frames, ucf101_frames, resisc45, eurosat, fer2013, caltech101, cars, voc2007, coco, flickr30k,
      urban1k, dci, docci, iiw400, sharegpt4v1k
or any folder of class folders: by its name in --data-dir, or folder:PATH.  DIR/test/CLASS/*.jpg and
DIR/train/CLASS/*.jpg are its splits (val, validation and dev count as test); DIR/CLASS/*.jpg alone is a test split.

Results are printed and written to OUT: results.jsonl (one object per number, with n, chance and interval), results.md,
results.csv.  A set that is not on disk is listed with instructions to get it, a task that the model does not allow with
the reason, and the others are evaluated; a task that fails does not stop the others.  The same command continues where
it was stopped, with the embeddings of zero_shot, retrieval, knn and linear from OUT/embeddings.  Images are distributed
over all devices, also over several processes: under SLURM or Open MPI 4, on a TPU pod with --distributed, or with
JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID.  Exit status: 0; 1 if a task failed or nothing was
measured; 2 for invalid usage.
"""

from detailclip_jax.runtime import start

if __name__ == "__main__":
    start.begin()  # before the other imports

import argparse
import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from detailclip_jax.runtime import errors
from detailclip_jax.runtime import parser as flags

if TYPE_CHECKING:
    from detailclip_jax.evaluation import Subject
    from detailclip_jax.evaluation.tasks import Task

DETAIL = "detail"  # the group of tasks that has a page
OUT = "evaluation"  # subfolder of the workdir; the step is appended
PROTOCOLS = "slip", "clip_benchmark"  # those of evaluation.protocols, whose import takes seconds
LOCK = ".evaluate.lock"  # in the folder of the results while they are written
KEPT = "what was measured is kept, and the same command continues from there"


def parser() -> argparse.ArgumentParser:
    """Returns the argument parser."""
    command = flags.parser("evaluate", __doc__)
    add = command.add_argument
    flags.add_checkpoint(command)
    add("--tasks", default="stickers", metavar="TASKS", help="what to measure, see above (default: stickers)")
    prompts = f"prompts: {' or '.join(PROTOCOLS)} (default: {PROTOCOLS[0]})"
    add("--protocol", type=flags.one_of("protocol", PROTOCOLS), default=PROTOCOLS[0], metavar="NAME", help=prompts)
    add("--weights", metavar="NAME,...", help="student, ema or both, comma-separated (default: all that exist)")
    add("--data-dir", default="data", metavar="DIR", help="folder of the sets on disk (default: data)")
    flags.add_follow_links(command)
    add("--out", metavar="DIR", help=f"folder of the results (default: {OUT}-STEP in the workdir)")
    compare = "print published numbers next to ours: the paper's of the method, or of CLIP on detail and dense tasks"
    add("--compare", choices=("paper", "published"), help=compare)
    few = "evaluate N evenly spaced examples of each set (default: all; kept_objects 1,000 and segmentation 500 scenes)"
    add("--num-examples", type=flags.positive, metavar="N", help=few)
    few = "fit knn, linear and segmentation on N examples of the training split (default: all; segmentation 500 scenes)"
    add("--num-train-examples", type=flags.positive, metavar="N", help=few)
    flags.add_preprocessing(command)
    add("--batch-size", type=flags.positive, default=256, metavar="B", help="images or texts at a time (default: 256)")
    add(
        "--style",
        default="noto",
        metavar="STYLE",
        help="drawings of stickers_style: noto, a font, a folder with one per noun (owl.png, 1f989.png or 1f989.webp)",
    )
    add("--distributed", action="store_true", help="connect to the other processes that jax finds (TPU pods)")
    add("--no-cache", dest="cache", action="store_false", help="do not store embeddings in OUT/embeddings")
    return command


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns 0, 1 if a task or the disk failed, 2 for invalid usage, 130 if interrupted."""
    return errors.run(lambda: _evaluate(parser().parse_args(argv)))


def _evaluate(arguments: argparse.Namespace) -> int:
    """Connects the processes, if there are several; loads the checkpoint, runs the tasks, writes and prints results."""
    from detailclip_jax.runtime import files, processes

    processes.join(distributed=arguments.distributed)
    import jax

    from detailclip_jax.evaluation import (
        Sets,
        detail_report,
        from_checkpoint,
        parse,
        readout_comparison,
        results,
        run_tasks,
        tables,
    )
    from detailclip_jax.interop import published
    from detailclip_jax.runtime.locks import alone
    from detailclip_jax.runtime.progress import Console
    from detailclip_jax.training.workdirs import pick_step

    limits = arguments.num_examples, arguments.num_train_examples
    sets = Sets(arguments.data_dir, 224, arguments.style, *limits)
    tasks = processes.agreed(lambda: parse(arguments.tasks, sets))
    arguments.checkpoint = processes.agreed(lambda: published.fetch(arguments.checkpoint))
    step = processes.agreed(lambda: pick_step(arguments.checkpoint, arguments.step))
    which, preprocess = arguments.weights and arguments.weights.split(","), flags.preprocessing_of(arguments)
    subject = processes.agreed(lambda: from_checkpoint(arguments.checkpoint, step, which, preprocess))
    out = Path(arguments.out or Path(arguments.checkpoint) / f"{OUT}-{subject.step}")
    console = Console(enabled=jax.process_index() == 0)
    console.say("\n".join(introduction(subject, tasks, arguments, out)))
    processes.agreed(lambda: files.check_writable(out) if jax.process_index() == 0 else None)
    with contextlib.ExitStack() as stack:
        stack.enter_context(processes.leaving_at_once())
        processes.agreed(lambda: stack.enter_context(alone(out / LOCK)) if jax.process_index() == 0 else None)
        stack.enter_context(processes.together())
        stack.enter_context(noting_what_is_kept(out))
        outcome = run_tasks(
            subject,
            tasks,
            sets._replace(image_size=subject.transform.size),
            protocol=arguments.protocol,
            out=out,
            keep_embeddings=arguments.cache,
            batch_size=arguments.batch_size,
            compare=arguments.compare,
            console=console,
        )
    has_page = outcome.records and DETAIL in map(str.strip, arguments.tasks.split(";"))
    if has_page and jax.process_index() == 0:
        detail_report.write(out, outcome)
    console.say(f"\n{tables.screen(outcome._replace(missing={}) if has_page else outcome)}\n")
    if has_page:
        console.say(f"{out / detail_report.FILE} is the page with published numbers, and says how to get other sets")
    for line in readout_comparison.keep(outcome) if jax.process_index() == 0 else ():
        console.say(line)
    console.say(f"written to {out}: {', '.join(results.FILES)}" if outcome.records else "nothing was measured")
    return outcome.exit_code


@contextlib.contextmanager
def noting_what_is_kept(out: Path) -> Iterator[None]:
    """Context that adds to an error, and to what a signal prints: results in `out` are kept, if there are any."""
    from detailclip_jax.runtime import signals

    def kept() -> str:
        with contextlib.suppress(OSError):
            return KEPT if any(each.name != LOCK for each in out.iterdir()) else ""
        return ""

    try:
        with signals.if_ended(kept):
            yield
    except BaseException as error:
        if note := kept():
            error.add_note(note)
        raise


def introduction(
    subject: "Subject", tasks: "Sequence[Task]", arguments: argparse.Namespace, out: Path
) -> Iterator[str]:
    """Yields lines that describe the evaluation: checkpoint, weights, preprocessing, tasks and folders."""
    from detailclip_jax import methods
    from detailclip_jax.data import preprocessing
    from detailclip_jax.evaluation import paper_numbers
    from detailclip_jax.evaluation.subject import text_sides
    from detailclip_jax.evaluation.tasks import with_readouts
    from detailclip_jax.runtime.terminal import counted

    config = subject.config
    if config is not None:
        weights, usual = " and ".join(subject.weights), methods.build(config).weights
        note = f"; published numbers of this method use the {usual} weights" if len(subject.weights) > 1 else ""
        yield f"{subject.method}, step {subject.step:,} of {subject.name}: {weights} weights{note}"
        yield f"preprocess: {preprocessing.description(config)}"
        yield from text_sides(subject)
    count = counted(len(tasks), "task")
    yield f"{count}, protocol {arguments.protocol}, sets on disk: {arguments.data_dir}; results: {out}"
    known = {measured[:2] for row in paper_numbers.published_results().values() for measured in row}
    chosen = with_readouts(tasks, subject.readouts, subject.default_readouts)
    if arguments.compare == "published" and not known & set(chosen):
        yield "published numbers exist for --tasks=detail and for dense tasks such as dense:voc21:sclip, not for these"
    if arguments.compare == "paper" and subject.method not in paper_numbers.PRINTED_NAMES:
        yield f"the paper's tables 2 and 3 lack {subject.method}; they have {', '.join(paper_numbers.PRINTED_NAMES)}"


if __name__ == "__main__":
    sys.exit(main())
