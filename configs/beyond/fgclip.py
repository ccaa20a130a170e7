"""FG-CLIP ViT-B/16 (arXiv 2505.05071): regions with phrases and false phrases, short and long captions.

    python -m detailclip_jax.import_torch --from=openai ViT-B-16.pt --out=runs/openai
    python -m detailclip_jax.main --config=configs/beyond/fgclip.py:stage=1 --config.init=runs/openai \
        --config.data.path=/data/long --workdir=runs/stage1
    python -m detailclip_jax.main --config=configs/beyond/fgclip.py --config.init=runs/stage1 \
        --config.data.path=/data/finehard

Both stages contrast an image with its long and its short caption, the second also its regions with their phrases, and
these with ten false ones:

    L = L_long + L_short + .1 L_reg + .5 L_11        (the last two: losses.weights.region_text)

Records have the fields "caption" (long) and "short_caption", and for the second stage boxes with phrases, as
`prepare finehard` writes them (docs/records.md); --config.data.caption=sources:A,B names others.  An example without
boxes trains its captions.  Published for B/16 [sec]: FG-OVD (hard, medium, easy, trivial), and the top-1 accuracy of
the classes of COCO's and LVIS's boxes:

                   FG-OVD                       boxes
    CLIP           12.0  23.1  22.2  58.5
    FG-CLIP        46.1  66.6  68.7  83.4      52.3  28.6

Differences from the published code.  Its mistakes: equal phrases of two boxes count as wrong; a device whose images
have no false phrase fails; the regions of a device alone are compared.  Our choices: one text encoder, with one
stretched table of positions (Long-CLIP's, all trained) and one projection for texts of both lengths (code: a second
table and a second projection for long ones, both copies at the start); short captions without "a photo of " before
them; up to four boxes of an image are drawn (code: the first four), of which those with false phrases count in L_11;
both scales of regions are clamped as CLIP's.

Sources: [code] the published code of stage 2; stage 1 is not published, [sec] second-hand, [recalled] from memory,
[choice] ours.
"""

from pathlib import Path

from detailclip_jax import config as base
from detailclip_jax.config import run_config

CLIP = Path(__file__).parents[1] / "baselines/clip.py"


def get_config(arg=None):
    arg = base.parse_arg(arg, stage=2)
    if arg.stage not in (1, 2):
        raise ValueError(f"config argument stage={arg.stage}: known are 1 and 2")
    c = run_config.load(f"{CLIP}:epochs=1")  # [code]; stage 1: 1.6e9 pairs [sec]
    c.init_required = True  # rates for trained encoders
    c.batch_size = 4096  # 512 on each of 8 devices [code: 512; their number: choice]
    c.data.caption = "sources:short_caption,caption"
    c.data.text_buckets = ()  # one program
    c.views.crops = {"large": base.crop(kind="whole", filter="bicubic")}  # squashed, not cropped [code]
    c.losses.weights.clip = 2.0  # the sum of both contrasts [code]; the term is their mean
    c.optimizer.learning_rate_end = 0.0  # [code]
    c.optimizer.betas = (0.9, 0.999)  # [code]
    c.optimizer.weight_decay = 0.001  # [code]
    c.optimizer.warmup_steps, c.optimizer.warmup_start = 200, 0.0  # [code]
    if arg.stage == 1:
        c.init_text_positions, c.model.context_length = "longclip", 248  # [code]
        c.optimizer.learning_rate = 1e-4  # [recalled]
        return c
    c.optimizer.learning_rate = 1e-6  # [code]
    c.data.regions, c.data.negatives, c.data.phrase_length = 4, 10, 77  # [code]
    c.losses.weights.region_text, c.losses.region_negatives = 0.1, (5.0, 0.0)  # .1 and .5 [code]
    c.losses.region_scale = 100.0  # both start where the trained scale of captions is [code]
    return c
