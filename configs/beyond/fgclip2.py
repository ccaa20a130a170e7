"""FG-CLIP 2 ViT-B/16 (arXiv 2510.10921), second stage: SigLIP 2 with regions, phrases, false phrases and margins.

    python -m detailclip_jax.import_torch siglip2-base-patch16-naflex --out=runs/siglip2 \
        --tokenizer=siglip2-base-patch16-naflex/tokenizer.json
    python -m detailclip_jax.main --config=configs/beyond/fgclip2.py --config.init=runs/siglip2 \
        --config.data.path=/data/finehard

    L = L_long + L_short + .2 L_reg + .1 L_tic + .5 (.6 L_g + 3 L_11 + .4 L_rank)

The first two are SigLIP's losses of captions of both lengths.  L_reg, L_g and L_11 are losses.weights.region_text with
losses.region_negatives: regions and phrases of the batch, the same with the false phrases of all regions, and a phrase
against its own false ones.  L_tic is text_contrast, and L_rank rank.  Records are those of configs/beyond/fgclip.py.
Published for B/16 [sec]: FG-OVD (hard, medium, easy, trivial) 52.3 76.3 80.3 92.0; top-1 accuracy of the classes of
COCO's and LVIS's boxes 74.9 and 47.3.

Differences from the published code.  Its mistakes: an error in a region's loss, as of fewer than ten phrases on a
device, drops all of them without a word, on that device alone; what L_tic leaves out stays in its sum with a cosine of
0; thresholds are lost when a run resumes; the regions of a device alone are compared, and equal phrases count as wrong.
Our choices: one text encoder, with one stretched table of positions and one head for short and long texts and phrases,
all of 196 tokens (code: two tables and three heads; 64 tokens for short ones); the map of regions is that of the
image's own attention pool, with each patch as the query (code: of a copy of this pool); squares (code: NaFlex, 128 to
1024 patches); English alone; scales of regions are clamped at 100.

Sources: [code] the published code, [sec] second-hand, [choice] ours.
"""

from pathlib import Path

from detailclip_jax import config as base
from detailclip_jax.config import run_config

SIGLIP = Path(__file__).parent / "siglip.py"


def get_config(arg=None):
    arg = base.parse_arg(arg, epochs=6)  # [code]
    c = run_config.load(f"{SIGLIP}:epochs={arg.epochs}")
    c.init_required = True  # rates for trained encoders
    c.batch_size = 4096  # 512 on each of 8 devices [code: 512; their number: choice]
    c.init_text_positions, c.model.context_length = "longclip", 196  # of 64 [code]
    c.data.caption = "sources:short_caption,caption"
    c.data.text_buckets = ()  # the last position is the caption's
    c.data.regions, c.data.negatives = 4, 10  # [code]
    c.views.crops = {"large": base.crop(kind="whole")}  # not cropped [code]
    c.losses.weights.update({"clip": 2.0, "region_text": 0.2, "text_contrast": 0.1, "rank": 0.2})  # [code]
    c.losses.region_negatives = (7.5, 1.5)  # 1.5 and .3 [code]
    c.losses.region_scale = 100.0  # [code]
    c.optimizer.learning_rate, c.optimizer.learning_rate_end = 1e-6, 0.0  # [code]; the end [choice]
    c.optimizer.betas, c.optimizer.eps, c.optimizer.weight_decay = (0.9, 0.98), 1e-6, 0.001  # [code]
    c.optimizer.warmup_epochs, c.optimizer.warmup_start = 0.03 * arg.epochs, 0.0  # 3 % of the steps [code]
    return c
