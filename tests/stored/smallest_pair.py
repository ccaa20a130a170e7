"""A run of two steps with the smallest networks: `configs/stickers.py` with model.size custom."""

from detailclip_jax.config import run_config


def get_config():
    c = run_config.load("configs/stickers.py")
    c.model.size = "custom"
    c.model.custom = {
        "patch_size": 8,
        "width": 16,
        "depth": 2,
        "num_heads": 2,
        "text_width": 4,
        "text_depth": 1,
        "text_heads": 1,
        "joint_width": 16,
        "decoder_depth": 1,
        "decoder_heads": 2,
        "head_width": 16,
        "bottleneck_width": 8,
        "prototypes": 16,
    }
    c.model.image_size = c.views.crops.large.size = 32
    c.batch_size, c.total_steps, c.steps_per_epoch = 4, 2, 2
    c.checkpoint_every, c.max_to_keep, c.log_every = 2, 1, 1
    c.evaluate_at_end, c.logging.images_every = False, 0
    return c
