"""Distils a frozen, larger image encoder into a CLIP ViT-S/16, which learns from captions at the same time.

    python -m detailclip_jax.import_torch --from=openai ViT-L-14.pt --out=runs/teacher
    python -m detailclip_jax.main --config=configs/beyond/distill.py --config.distill.teacher=runs/teacher \
        --config.data.path=...

The teacher is any run or import, of any width, patch size and number of registers.  TIPSv2 (arXiv 2604.12012) finds
that a student of a frozen teacher, with a loss at all visible patches, matches patches with words better than its
teacher [sec]; that loss compares prototypes.  Here it is the cosine of tokens, as AM-RADIO (arXiv 2312.06709) has for
its summary; for patches that has .9 of a cosine and .1 of a smooth L1, after a bilinear resampling [recalled].

--config.losses.weights.clip=0 leaves the teacher alone; the text encoder then learns nothing.

Sources: [sec] others' notes on the paper, [recalled] from memory, [choice] ours.
"""

from pathlib import Path

from detailclip_jax import config as base
from detailclip_jax.config import run_config

CLIP = Path(__file__).parents[1] / "baselines/clip.py"


def get_config(arg=None):
    arg = base.parse_arg(arg, epochs=25)
    c = run_config.load(f"{CLIP}:epochs={arg.epochs}")
    c.model.size = "S/16"
    c.views.crops = {
        "large": base.crop(scale=(0.5, 1.0), filter="bicubic")
    }  # CLIP's, as sharp as teachers read [choice]
    # On stickers, 4 names more patches than 1 (docs/experiments.md); AM-RADIO: 1 for each of its terms [recalled].
    c.losses.weights.update({"clip": 1.0, "distill": 4.0})  # [choice]
    return c
