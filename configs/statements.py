"""The recipe for what captions state of sides, sizes and attributes: SuperCLIP with false captions, in two stages.

    python -m detailclip_jax.main --config=configs/statements.py:stage=sides --workdir=runs/sides
    python -m detailclip_jax.main --config=configs/statements.py --config.init=runs/sides --workdir=runs/statements

A stated side ("a frog at the top") is hard to begin with: the term `negatives` gives the text encoder a gradient for it
only if images show it, and the image encoder one only if texts distinguish it. Three things break this:

- the term `intra_modal` moves a caption away from its own false ones, without the image;
- learnt positions start as large as embedded patches; with .02 they are 30 times smaller after 300 steps;
- a first stage states sides alone, of one noun before those of two.

Each of the first two alone leaves the choice of a side at chance.  Sizes and attributes need none of them: CLIP reads
them from captions that state them (configs/stickers.py:states=True).  Both stages see half of the patches and have one
false caption of an image, with the fact exchanged.  In the second stage 40 % of the captions are ordinary ones ("a frog
and a camera").  So an image costs .12 GFLOP, CLIP's .17 with the same captions.

docs/experiments.md has the results.  Stickers only; for own data, begin with captions that say where things are.
"""

from pathlib import Path

from detailclip_jax import config as base
from detailclip_jax.config import run_config

HERE = Path(__file__).parent


def get_config(arg=None):
    arg = base.parse_arg(arg, stage="all")
    if arg.stage not in ("sides", "all"):
        raise ValueError(f"config argument stage={arg.stage}: known are sides and all")
    c = run_config.load(f"{HERE}/stickers.py:method=superclip,states=True")
    c.model.image_style.position_std = 1.0
    c.data.negatives = 1  # the fact exchanged
    c.losses.weights.negatives, c.losses.weights.intra_modal = 1.0, 0.3
    c.views.patch_dropout = 0.5  # more images for the same FLOP
    if arg.stage == "sides":
        c.total_steps = 1200  # with 600 one of three seeds hardly learnt sides
        c.data.stickers.kinds = "side"
        c.data.relations = (0.5, 0.9)  # sides of one noun in the first half
    else:
        c.total_steps = 2600  # both stages together: 57 TFLOP, 1.5 times CLIP of the results
        c.views.patch_dropout_until = 0.9  # then all patches
        c.data.stickers.kinds = "side,side,side,attribute,count,size"  # half of the statements are of a side
        c.data.relations = (0.0, 1.0)
        c.data.ordinary_ratio = 0.4
        c.init_required = True  # with all kinds equally often and no first stage, sides stayed at chance
    return c
