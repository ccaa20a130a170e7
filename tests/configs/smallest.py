"""A run that takes seconds: 16 patches, 8 scenes a step, few words.

python -m detailclip_jax.main --config=tests/configs/smallest.py --workdir=runs/smallest
"""

from detailclip_jax import config as base
from detailclip_jax.config import sizes


def get_config(arg=None):
    arg = base.parse_arg(arg, method="detailclip")
    c = base.default()
    c.method = arg.method
    c.batch_size = 8
    c.total_steps = 40
    c.steps_per_epoch = 10
    c.log_every = 1
    c.checkpoint_every = 4
    c.evaluate_at_end = False
    c.data.source = "stickers"
    c.model.size = "custom"
    c.model.custom = {**sizes.SIZES["tiny"]._asdict(), "depth": 1, "text_depth": 1}  # one block each: less to compile
    c.model.image_size = 32
    c.model.context_length = 12
    c.model.prototypes = 16
    c.views.crops.large.size = 32
    c.ema.start = 0.9
    return c
