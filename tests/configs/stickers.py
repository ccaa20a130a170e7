"""configs/stickers.py with fewer images and blocks, for notebooks and pages, which find a folder `configs` with it."""

from detailclip_jax.config import run_config, sizes
from detailclip_jax.config.config_files import bundled_folder


def get_config(arg=None):
    c = run_config.load(f"{bundled_folder()}/stickers.py" + (f":{arg}" if arg else ""))
    c.batch_size = 16
    c.model.size = "custom"
    c.model.custom = {**sizes.SIZES["tiny"]._asdict(), "depth": 1, "text_depth": 1}
    return c
