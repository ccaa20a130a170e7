"""DeBias-CLIP ViT-B/16 (arXiv 2602.22419): fine-tunes a CLIP on long captions and on parts of them.

    python -m detailclip_jax.import_torch --from=openai ViT-B-16.pt --out=runs/openai
    python -m detailclip_jax.main --config=configs/beyond/debias.py --config.init=runs/openai \
        --config.data.path=/data/sharegpt4v

The method is CLIP with the caption rule "debias": the whole caption, and a short one, which has some sentences without
the first, in random order and moved to a random place of the context.  Any method with several captions can have it:
--config.data.caption=debias.  Text to image, B/16, ShareGPT4V [sec]:

                                      Urban1k    COCO
    Long-CLIP                         79.5       40.4
    Long-CLIP, longer                 81.0       39.6
    short caption without the first   92.6       42.2
    + random sentences                92.5       41.9
    + paddings before the words       93.0       43.0

Differences from the published run, all [choice]: the losses of both captions count half each (.1 for the short one
[sec]); without Long-CLIP's short image embedding (32 principal components of a device's batch) and its label smoothing
of .1 [code]; the first 20 text positions are trained too.  Sentences end at every full stop.  A caption of one sentence
is both captions.

Sources: [code] Long-CLIP's published training code, [sec] others' notes on the paper, [choice] ours.
"""

from pathlib import Path

from detailclip_jax import config as base
from detailclip_jax.config import run_config

CLIP = Path(__file__).parents[1] / "baselines/clip.py"


def get_config(arg=None):
    arg = base.parse_arg(arg, epochs=3)  # three epochs [sec]
    c = run_config.load(f"{CLIP}:epochs={arg.epochs}")
    c.init_required = True  # rates for trained encoders
    c.init_text_positions, c.model.context_length = "longclip", 248  # [code]
    c.batch_size = 256  # [sec]
    c.data.caption = "debias"
    c.data.text_buckets = ()  # one program: words may be moved to the end of the context
    c.views.crops = {"large": base.crop(scale=(0.9, 1.0), filter="bicubic")}  # [choice]: as in flair.py
    c.optimizer.learning_rate, c.optimizer.learning_rate_end = 1e-6, 0.0  # [code]; the end [choice]
    c.optimizer.weight_decay = 0.01  # [code]
    c.optimizer.warmup_steps = 200  # [code]
    c.optimizer.warmup_start = 5e-9  # [choice]: from 0, a linear warm-up that begins at its first step
    return c
