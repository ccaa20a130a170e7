"""Trains a segmentation head on an image encoder, frozen or end to end, and goes on with it where it was stopped.

    python -m detailclip_jax.transfer --config=configs/transfer/stickers_linear.py --config.init=runs/stickers
    python -m detailclip_jax.transfer --config=configs/transfer/ade20k_upernet.py --config.init=runs/vitb16 \\
        --config.data.path=/data/ADEChallengeData2016 --workdir=runs/ade20k

--config.init names the workdir of a trained encoder, or of an imported one (import_torch); without it the encoder is
untrained.  --config.NAME=VALUE sets a field; --help-config with --config lists them with meaning and source.
The workdir (default: runs/ and the config's name) receives the same files as a run of `main`; at the end results.json
has mIoU, mAcc and aAcc in percent, also per class, and figures/ the predictions beside the ground truth.  The same
command continues from the last checkpoint; Ctrl-C and SIGTERM save one first.
"""

import shlex
from collections.abc import Sequence
from pathlib import Path

from absl import app

from detailclip_jax import main as train


def following(flags: Sequence[str], workdir: Path, total_steps: int) -> str:
    """Returns what to do next with a finished run."""
    there = shlex.quote(str(workdir))
    return (
        f"to compare runs in one figure, in Python: from detailclip_jax.run import transfer; "
        f"transfer.compare({{'this': {there!r}, 'other': ...}}, 'compared.png')"
    )


def main(argv: Sequence[str]) -> int:
    """Runs the command and returns its exit code."""
    return train.run(argv, "transfer", train.asked_as_written, following)


def command() -> None:
    """Runs the command with the arguments in `sys.argv` and exits."""
    app.run(main, flags_parser=lambda argv: train.parse_flags(argv, "transfer", __doc__))


if __name__ == "__main__":
    command()
