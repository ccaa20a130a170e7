"""The recipe for detail: CLIP, and the mean of the patches predicts the tokens of the caption (SuperCLIP's term).

    python -m detailclip_jax.main --config=configs/detail.py
    python -m detailclip_jax.main --config=configs/detail.py:data=yfcc --config.data.path=/data/yfcc15m
    python -m detailclip_jax.compare --methods=detailclip,configs/detail.py --seeds=1 --workdir=runs/beside

The second line trains a B/16 on YFCC15M with long captions (docs/records.md#captions): one text of one to three
sentences an image, so that a step costs what it costs with short ones.  It was not run.  The last line trains the
recipe beside the demo's method.

CLIP compares a caption with the class token alone: no loss reads the patches that the last block computes.  The added
term reads them.  There is no second view, small crop, mask, decoder or teacher; DetailCLIP's own parts are not in it,
and no ablation has shown yet whether they would pay.

On stickers an image costs .162 GFLOP, CLIP's .161, counted by XLA.  docs/experiments.md has the results at equal FLOP.
"""

from pathlib import Path

from detailclip_jax import config as base
from detailclip_jax.config import run_config

HERE = Path(__file__).parent


def get_config(arg=None):
    arg = base.parse_arg(arg, data="stickers")
    if arg.data not in ("stickers", "yfcc"):
        raise ValueError(f"config argument data={arg.data}: known are stickers and yfcc")
    c = run_config.load(
        f"{HERE}/stickers.py:method=superclip" if arg.data == "stickers" else f"{HERE}/baselines/clip.py"
    )
    c.losses.weights.token_set = 1.0
    if arg.data == "yfcc":
        c.data.caption, c.data.num_captions = "diverse", 1  # FLAIR's rule [choice]
    return c
