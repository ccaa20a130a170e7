"""CLIP with three terms for detail, at no more than twice CLIP's FLOP for an image.

    python -m detailclip_jax.main --config=configs/detail.py
    python -m detailclip_jax.main --config=configs/detail.py:data=yfcc --config.data.path=/data/yfcc15m_dreamlip
    python -m detailclip_jax.compare --methods=detailclip,configs/detail.py --seeds=1 --workdir=runs/beside

The second line trains a B/16 on YFCC15M with long captions (docs/records.md says how to make these shards); it was not
run.  The last line trains the recipe beside the demo's method.

One large view of an image is compared with two captions of several sentences and one of one (COSMOS's rule).  Then
    token_set  the image predicts the tokens of its captions (SuperCLIP),
    beta       the image, pooled by each caption, is compared with the captions of all images (B-CLIP),
    region     patches pooled in the box of a small crop come near the teacher's embedding of that crop (CLIPSelf).
The student reads no second view and no small crop, and there is no teacher of texts: these cost COSMOS most of its 5.4
times CLIP's FLOP.  DetailCLIP's masks, decoder and distillation are left out.

Weights are those of the published methods.  On stickers an image costs .314 GFLOP, CLIP's .161, counted by XLA.
Whether the recipe sees more detail than CLIP at equal FLOP is not measured yet.
"""

from pathlib import Path

from detailclip_jax import config as base
from detailclip_jax.config import run_config
from detailclip_jax.data.stickers.scene_captions import words
from detailclip_jax.data.tokenizer import Tokenizer

HERE = Path(__file__).parent


def get_config(arg=None):
    arg = base.parse_arg(arg, data="stickers")
    if arg.data not in ("stickers", "yfcc"):
        raise ValueError(f"config argument data={arg.data}: known are stickers and yfcc")
    c = stickers() if arg.data == "stickers" else yfcc()
    c.data.num_captions = 3
    c.data.text_buckets = ()  # one program
    c.losses.weights.update({"token_set": 1.0, "beta": 1.0, "region": 1.0})
    return c


def stickers():
    c = run_config.load(f"{HERE / 'stickers.py'}:method=clip")
    c.views.crops.local = base.crop(count=3, size=32, kind="inside", scale=(0.15, 0.4), filter="bicubic")
    c.data.caption, c.model.context_length = "crops:long", 64  # captions have up to 57 tokens
    c.losses.token_ids = tuple(sorted({id for text in words() for id in Tokenizer().encode(text)[1:-1]}))
    c.ema.start = c.ema.end = 0.98  # as for the other methods of configs/beyond on stickers
    return c


def yfcc():
    c = run_config.load(f"{HERE / 'baselines/clip.py'}")
    c.data.caption = "crops"
    c.views.crops.local = base.crop(count=3, size=96, kind="inside", scale=(0.05, 0.4), filter="bicubic")
    c.ema.start, c.ema.end = 0.99, 0.999
    return c
