"""FLAIR ViT-B/16 (arXiv 2412.03561): several captions per image, and images pooled by each caption.

    python -m detailclip_jax.main --config=configs/beyond/flair.py --config.data.path=/data/cc3m
    python -m detailclip_jax.main --config=configs/beyond/flair.py:data=yfcc15m --config.data.path=/data/yfcc15m

It needs data with long captions, such as DreamLIP's of CC3M, CC12M and YFCC15M: with a title alone, all captions of an
image would be the same.  Published for B/16, where every image is pooled by every text:

               COCO, image to text / text to image    Flickr30K
    CC3M       51.6 / 37.7                            78.7 / 65.7
    CC12M      64.1 / 47.8                            90.8 / 75.4
    YFCC15M    67.3 / 51.2                            93.3 / 79.2

Sources of the fields: [code] the published training code, [choice] ours.  In the published loss the batch is that of a
device, and an image may be compared with several captions of an image of another device; here it is the global batch,
with one caption of each other image [choice].
"""

from pathlib import Path

from detailclip_jax import config as base
from detailclip_jax.config import run_config

CLIP, COSMOS = Path(__file__).parents[1] / "baselines/clip.py", Path(__file__).parent / "cosmos.py"
SETS = {  # batch size and captions per image [code]; the script for YFCC15M may be unadapted from another machine
    "cc3m": (1024, 8),
    "cc12m": (6144, 8),
    "yfcc15m": (1536, 10),
}


def get_config(arg=None):
    arg = base.parse_arg(arg, epochs=32, data="cc3m")  # 32 epochs [code]
    if arg.data not in SETS:
        raise ValueError(f"config argument data={arg.data}: known are {', '.join(SETS)}")
    c = run_config.load(f"{CLIP}:epochs={arg.epochs}")
    c.method = "flair"
    c.data.caption = "diverse"  # 1 to 3 sentences each, half of the longer ones consecutive [code]
    c.batch_size, c.data.num_captions = SETS[arg.data]
    c.views.crops = {"large": base.crop(scale=(0.9, 1.0), filter="bicubic")}  # [code]; bicubic: open_clip's default
    cosmos = run_config.module(str(COSMOS))
    cosmos.open_clip_networks(c)
    cosmos.open_clip_training(c)
    c.losses.weights.update({"clip": 1.0})  # of (L_TCS + L_MPS) / 2 [code]
    return c
