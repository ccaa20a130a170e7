"""The embedded default: DetailCLIP on scenes composed of real drawings; minutes on two CPU cores, no network.

    python -m detailclip_jax.main --config=configs/stickers.py
    python -m detailclip_jax.main --config=configs/stickers.py:method=clip --config.seed=1

Numbers on these scenes are this benchmark's own.  What differs from the paper, and why, stands at each line.
"""

from detailclip_jax import config as base


def get_config(arg=None):
    arg = base.parse_arg(arg, method="detailclip")
    c = base.default()
    c.method = arg.method
    c.batch_size = 128
    c.total_steps = 600  # 77k scenes
    c.steps_per_epoch = 60  # a tenth of the run: "epoch 0" of the patch temperature, and the warm-up
    c.log_every = 10
    c.checkpoint_every = 100

    c.data.source = "stickers"

    c.model.size = "tiny"  # patch 8, 96 wide, 3 blocks: an 8 x 8 grid
    c.model.image_size = 64
    c.model.context_length = 32  # captions are short; 77 would be padding (exact under the causal mask)

    crop = c.views.crops["global"]
    crop.size = 64
    crop.scale = (0.5, 1.0)  # paper 4.1
    crop.jitter = (0.4, 0.4, 0.2, 0.0)  # no hue: drawings of one noun differ from another's by colour
    crop.gray_p = 0.0  # for the same reason
    crop.blur_sigma = (0.1, 0.6)  # 2 pixels of 224 are .6 of 64
    crop.solarize_p = (0.0, 0.0)

    c.optimizer.learning_rate = 1e-3  # a small model and batch; 5e-4 is for ViT-B/16 at 4096
    c.optimizer.warmup_epochs = 1.0
    c.ema.start = 0.99  # .996 -> 1 over 600 steps would leave the teacher at its start
    c.ema.end = 0.998
    c.losses.pixel_eps = 1e-2  # patches of flat ground have no variance: 1e-6 would make their noise the target

    if c.method == "clip":  # one view, and a patch embedding that learns; DetailCLIP keeps its random one
        crop.count, crop.blur_p, crop.solarize_p = 1, (0.1,), (0.0,)
        c.model.freeze_patch_embed = False
    return c
