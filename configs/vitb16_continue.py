"""Continues training from an existing checkpoint: DetailCLIP (or any method) from a trained CLIP on your own data.

    python -m detailclip_jax.import_torch --from=openai ViT-B-16.pt --out=runs/openai
    python -m detailclip_jax.main --config=configs/vitb16_continue.py --config.init=runs/openai --config.data.path=...
    python -m detailclip_jax.main --config=configs/vitb16_continue.py:method=clip,epochs=2 --config.init=...

The sizes (B/16 or any other), the image encoder's norm, activation and pooling, the image size and the normalisation
are those of `init`.  Networks that it lacks (decoder, heads) are initialised, and a missing teacher is a copy of the
student.  Crops, masks and losses are the method's own, from configs/vitb16_yfcc.py, configs/baselines and
configs/beyond, but DetailCLIP and A-CLIP remove a quarter of the patches, not half.  The paper trains from scratch; the
numbers here are ours, chosen from common practice in fine-tuning CLIP.

docs/experiments.md has runs on stickers that continue a small CLIP.
"""

from pathlib import Path

from detailclip_jax import config as base
from detailclip_jax.config import run_config

FOLDER = Path(__file__).parent


def get_config(arg=None):
    arg = base.parse_arg(arg, method="detailclip", epochs=5)
    c = from_scratch(arg.method)
    c.init_required = True  # rates and the frozen patch embedding are for trained networks
    c.num_epochs, c.total_steps = arg.epochs, None  # a fifth of the paper's, as the encoders are already trained
    c.batch_size = 512  # for one machine instead of 16 A100s
    c.log_every = 50
    c.checkpoint_every = 1000
    c.data.held_out = 1000  # at most 2 % of the data, for the evaluation at the end

    if c.method in ("detailclip", "aclip"):
        c.masking.ratio = 0.25  # 0.5 costs a trained encoder most: docs/experiments.md

    c.model.freeze_patch_embed = True  # keeps its trained values

    c.optimizer.learning_rate = 3e-4  # of the new networks
    c.optimizer.loaded_rate = 0.1  # the loaded networks get 3e-5
    c.optimizer.part_rates = {}  # those of configs/beyond/beta.py are factors of its own low rate
    c.optimizer.layer_decay = 0.75  # the first loaded blocks hardly change
    c.optimizer.warmup_epochs, c.optimizer.warmup_steps = 0.5, None
    c.optimizer.weight_decay = 0.1  # .5 is for training from scratch
    c.optimizer.weight_decay_end = None
    if c.ema.start != c.ema.end:  # SILC, SigLIP 2 and COSMOS have a constant momentum and keep it
        c.ema.start, c.ema.end = 0.999, 1.0  # .996 suits a student that changes fast
    return c


def from_scratch(method):
    """Returns the config for training the method from scratch."""
    if method == "detailclip":
        return run_config.load(str(FOLDER / "vitb16_yfcc.py"))
    file = run_config.file_of_method(FOLDER / "vitb16_yfcc.py", method)
    return run_config.load(str(file or FOLDER / "baselines" / f"{method}.py"))
