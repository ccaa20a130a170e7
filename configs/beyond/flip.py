"""FLIP ViT-B/16 (arXiv 2212.00794): CLIP that sees half of the patches in training, and all of them at its end.

    python -m detailclip_jax.main --config=configs/beyond/flip.py --config.data.path=/data/laion400m

The published run sees 12.8 billion images of LAION-400M: 68.0 ImageNet-1K zero-shot for B/16 [code].  A shorter run,
L/16 [paper]: all patches 68.6; half of them 69.6, and 70.1 after tuning on all patches; a quarter of them, at twice the
batch size, 68.2 and 69.5.  --config.views.patch_dropout=.75 keeps a quarter.

Epochs are those of 1,281,167 images: 10,000 with dropout, then 100 of tuning as a second run, from a fresh warm-up to a
hundredth of the rate [code].  Here both are one run with one cosine.  The tuning needs the memory of all patches: set
--config.accumulation for it.

Differences from the published code, all [choice]: CLIP's causal text encoder, and its tokenizer instead of BERT's, the
mean of the patches without the class token, the end of the rate.

Sources: [code] the published training code and its README, [paper], [choice] ours.
"""

from pathlib import Path

from detailclip_jax import config as base
from detailclip_jax.config import run_config

CLIP = Path(__file__).parents[1] / "baselines/clip.py"
EPOCH = 1_281_167  # images of an epoch [code]


def get_config():
    c = run_config.load(str(CLIP))
    c.batch_size = 65536  # [code]
    c.total_steps = round(10100 * EPOCH / c.batch_size)  # 10,000 epochs and 100 of tuning [code]
    c.views.patch_dropout = 0.5  # [code]
    c.views.patch_dropout_until = 10000 / 10100  # [code]
    c.views.crops = {"large": base.crop(scale=(0.5, 1.0), flip=0.5)}  # [code]
    c.model.context_length = 32  # [code]
    style = c.model.image_style
    style.positions, style.init, style.pooling = "sincos", "xavier", "mean"  # [code]
    c.optimizer.learning_rate = 4e-6 * c.batch_size / 256  # 1.024e-3 [code]
    c.optimizer.learning_rate_end = 4e-8 * c.batch_size / 512  # [choice]: the mean of the rates of tuning
    c.optimizer.warmup_steps = round(20 * EPOCH / c.batch_size)  # [code]
    c.optimizer.warmup_start, c.optimizer.peak_twice = 0.0, False  # [code]; the number of steps as in mae.py [choice]
    c.optimizer.betas, c.optimizer.weight_decay = (0.9, 0.95), 0.2  # [code]
    c.optimizer.decay_1d = False  # no decay of biases, norms, the class token [code]
    c.optimizer.decay_positions = False  # [code]
    return c
