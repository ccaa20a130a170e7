"""Evaluates a checkpoint on named data sets: zero-shot, retrieval, k-NN and linear probes.

    python -m detailclip_jax.evaluate --checkpoint=runs/stickers                        # needs no data on disk
    python -m detailclip_jax.evaluate --checkpoint=runs/vitb16_yfcc --tasks=paper --data-dir=/data --compare=paper
    python -m detailclip_jax.evaluate --checkpoint=runs/vitb16_yfcc --data-dir=/data \\
        '--tasks=zero_shot:imagenet,pets;retrieval:coco,flickr30k;knn:pets;linear:pets'

TASKS is a list separated by semicolons, each entry KIND:SET,SET,... (quote it, because the shell splits at ;):

  zero_shot  classify an image by the class whose prompts have the nearest embedding
  retrieval  find an image's captions among all captions, and images by captions (R@1, R@5, R@10)
  knn        k nearest neighbours in the training split, on the class token
  linear     logistic regression on the class token, fitted on the training split
  dense      training-free segmentation by class names, as SET or SET:READOUT, see below
  kept_objects, segmentation      only on stickers: patches of high attention that touch an object; linear segmentation

  stickers   as a task: all of these but dense on the embedded scenes, no download.  As sets: stickers, stickers_pairs
             (pairs of nouns that do not occur together in training; retrieval), stickers_style (another artist's
             drawings, see --style)
  paper      as a task: the paper's tables 2 and 3.  As a set: the paper's sets of that kind, as in zero_shot:paper;
             "all" means all sets of that kind

dense:SET:READOUT compares class names with patch features after a change to the last block.  Read-outs: plain,
maskclip, maskclip_bare, sclip, naclip, clearclip, gem, tips (default: naclip; SET:all takes each in turn).  Sets:
stickers, voc20, voc21, context59, context60, coco_object, coco_stuff171, ade150, cityscapes (docs/evaluation.md lists
their folders), or folder:PATH with images/val, masks/val and classes.txt.

Sets: {sets}
or any folder of class folders: by its name in --data-dir, or folder:PATH.  DIR/test/CLASS/*.jpg and
DIR/train/CLASS/*.jpg are its splits (val, validation and dev count as test); DIR/CLASS/*.jpg alone is a test split.

Results are printed and written to OUT: results.jsonl (one object per number, with n, chance and interval), results.md,
results.csv.  A set that is not on disk is listed with instructions to get it, and the others are evaluated; a task that
fails does not stop the others.  The same command continues where it was stopped, with the embeddings of zero_shot,
retrieval, knn and linear from OUT/embeddings.  Images are distributed over all devices, also over several processes:
under SLURM or Open MPI 4, on a TPU pod with --distributed, or with JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and
JAX_PROCESS_ID.  Exit status: 0; 1 if a task failed or nothing was measured; 2 for invalid usage.
"""

import argparse
import sys
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from detailclip_jax.runtime import errors
from detailclip_jax.runtime import parser as flags

if TYPE_CHECKING:
    from detailclip_jax.evaluation import measurement


def parser() -> argparse.ArgumentParser:
    """Returns the argument parser."""
    from detailclip_jax.data import preprocessing
    from detailclip_jax.data.labelled import KNOWN
    from detailclip_jax.evaluation.measurement import OUT
    from detailclip_jax.evaluation.protocols import PROTOCOLS

    sets = textwrap.fill(", ".join(KNOWN), 112, subsequent_indent="      ")
    command = flags.parser("evaluate", (__doc__ or "").format(sets=sets))
    add = command.add_argument
    flags.add_checkpoint(command)
    add("--tasks", default="stickers", metavar="TASKS", help="what to measure, see above (default: stickers)")
    prompts = f"prompts: {' or '.join(PROTOCOLS)} (default: {PROTOCOLS[0]})"
    add("--protocol", type=flags.one_of("protocol", PROTOCOLS), default=PROTOCOLS[0], metavar="NAME", help=prompts)
    add("--weights", metavar="NAMES", help="student, ema or both, comma-separated (default: all that exist)")
    add("--data-dir", default="data", metavar="DIR", help="folder of the sets on disk (default: data)")
    add("--follow-links", action="store_true", help=flags.FOLLOW_LINKS)
    add("--out", metavar="DIR", help=f"folder of the results (default: WORKDIR/{OUT}-STEP)")
    compare = "print published numbers next to ours: the paper's of the method, or of dense read-outs on CLIP B/16"
    add("--compare", choices=("paper", "published"), help=compare)
    few = "evaluate N evenly spaced examples of each set (default: all; kept_objects 1,000 and segmentation 500 scenes)"
    add("--num-examples", type=flags.positive, metavar="N", help=few)
    few = "fit knn, linear and segmentation on N examples of the training split (default: all; segmentation 500 scenes)"
    add("--num-train-examples", type=flags.positive, metavar="N", help=few)
    preprocessing.add_flags(command)
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


def request_of(arguments: argparse.Namespace) -> "measurement.Request":
    """Returns what the flags ask to evaluate."""
    from detailclip_jax.data import preprocessing
    from detailclip_jax.evaluation import measurement
    from detailclip_jax.evaluation.evaluation_sets import Sets

    limits = {name: getattr(arguments, name) for name in ("num_examples", "num_train_examples")}
    return measurement.Request(
        checkpoint=arguments.checkpoint,
        tasks=arguments.tasks,
        sets=Sets(arguments.data_dir, style=arguments.style, follow_links=arguments.follow_links, **limits),
        step=arguments.step,
        weights=arguments.weights.split(",") if arguments.weights else None,
        preprocess=preprocessing.given(arguments),
        out=arguments.out,
        protocol=arguments.protocol,
        keep_embeddings=arguments.cache,
        batch_size=arguments.batch_size,
        compare=arguments.compare,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns 0, 1 if a task or the disk failed, 2 for invalid usage, 130 if interrupted."""
    return errors.run(lambda: _evaluate(parser().parse_args(argv)))


def _evaluate(arguments: argparse.Namespace) -> int:
    """Connects the processes, if there are several, and evaluates."""
    from detailclip_jax.runtime import processes

    processes.join(distributed=arguments.distributed)
    from detailclip_jax.evaluation import measurement

    return measurement.run(request_of(arguments))


if __name__ == "__main__":
    sys.exit(main())
