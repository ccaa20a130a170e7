"""dino.txt: texts and two new blocks are trained on the tokens of a frozen image encoder (arXiv 2412.16334).

    python -m detailclip_jax.import_torch dinov3_vitb16_pretrain_lvd1689m.pth --out=runs/dinov3
    python -m detailclip_jax.main --config=configs/beyond/dinotxt.py --config.init=runs/dinov3 --config.data.path=...
    python -m detailclip_jax.main --config=configs/beyond/dinotxt.py:steps=5000 --config.init=... \
        --config.batch_size=512 --config.model.custom.text_width=512 --config.model.custom.text_depth=12 \
        --config.model.custom.text_heads=8

`init` is any run or import whose image encoder has a class token (CLIP, DINO, DINOv2, DINOv3, iBOT, timm, TIPS). Its
texts, if it has some, are trained further; its projections are not used. The encoder's sizes and the preprocessing of
evaluation are those of `init`, the sizes of a text encoder from scratch those below. The encoder costs a forward pass,
and has neither gradient nor moments.

The published models are a DINOv2 L/14 with four registers and a DINOv3 L/16. The batch below is that of the published
example on 32 GPUs. The data is private. No result with these settings is known.

Differences from the published code: queries, keys and values of texts have biases, there they have none [choice]; drop
path drops each image with probability .3, there exactly this share of a batch
[choice]. The code has an optional Gram loss between the patches before and after the blocks, which its example does not
use; it is not here.

Sources: [code] DINOv3's dinov3/eval/text/configs/dinov3_vitl_text.yaml and train_dinotxt.py, read in the copy
hnu-vis/SLE-T 50b1733; the number of GPUs and the sizes of the text encoder: dinov3's README and hub/dinotxt.py;
[choice] ours. The head itself is methods/dinotxt.py and models/image_blocks.py: drop path .3, layer scale 1e-5,
logit scale from ln(1/.07), clamped to ln 100, all [code].
"""

from pathlib import Path

from detailclip_jax import config as base
from detailclip_jax.config import run_config, sizes

CLIP = Path(__file__).parents[1] / "baselines/clip.py"


def get_config(arg=None):
    arg = base.parse_arg(arg, steps=50000)  # [code]
    c = run_config.load(str(CLIP))
    c.method = "dinotxt"
    c.init_required = True  # a locked encoder of noise would stay noise
    c.batch_size, c.total_steps = 8192, arg.steps  # 256 on each of 32 GPUs [code]
    c.data.held_out = 1000  # at most 2 % of the data, for the evaluation at the end [choice]
    c.views.crops = {"large": base.crop(scale=(0.08, 1.0), filter="bicubic", flip=0.5)}  # [code]
    c.model.size = sizes.CUSTOM
    text = {
        "text_width": 1280,
        "text_depth": 24,
        "text_heads": 20,
    }  # 77 tokens, CLIP's vocabulary and causal mask [code]
    c.model.custom = sizes.SIZES["L/16"]._replace(**text)._asdict()
    c.model.text_activation = "gelu"  # [code]
    c.optimizer.frozen = "image"  # [code]
    c.optimizer.learning_rate, c.optimizer.learning_rate_end = 7e-4, 0.0  # [code]
    c.optimizer.warmup_start, c.optimizer.peak_twice = 0.0, False  # [code]
    c.optimizer.warmup_steps = max(round(0.04 * arg.steps), 1)  # 2,000 of 50,000 [code]
    c.optimizer.betas, c.optimizer.eps = (0.9, 0.99), 1e-8  # [code]
    c.optimizer.weight_decay = 1e-4  # of matrices, tokens and positions [code]
    return c
