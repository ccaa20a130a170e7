"""Continues a trained CLIP with crop to region distillation (after CLIPSelf, arXiv 2310.01403), on one GPU.

    python -m detailclip_jax.import_torch --from=openai ViT-B-16.pt --out=runs/openai
    python -m detailclip_jax.main --config=configs/beyond/continue_region.py --config.init=runs/openai \
        --config.data.path=...

The contrast with captions goes on, and patches, pooled in the box of a crop, come near the teacher's embedding of that
crop.  CLIPSelf has no other loss, and its teacher is the frozen start.  It trains the blocks of the image encoder alone
(`unlocked-groups 12`; embeddings, final norm and projection stay), as with these flags:

    --config.losses.weights.clip=0 --config.ema.start=1 --config.ema.end=1 --config.model.scan=False \
        --config.optimizer.frozen=image:-12,final_norm,image_projection,text,text_projection

FineCLIP trains all, and also contrasts images with captions, and regions with captions of their own; its teacher is the
student.

All published runs start from EVA-02 CLIP B/16 and train on COCO.  Top-1 of the classes of COCO's / LVIS's boxes: CLIP
44.2 / -, CLIPSelf 43.7 / 7.8, FineCLIP 48.4 / 23.3 [sec].  CLIPSelf's student reads 1,024 px, and .7 of its weights
plus .3 of the old ones are used [code]; here it reads the size of `init`, and its weights are used as they are.

Sources: [CLIPSelf], [FineCLIP]: their published code, [sec] others' notes on the paper, [choice] ours.  Sizes and
preprocessing are those of `init`, see configs/vitb16_continue.py.
"""

from pathlib import Path

from detailclip_jax import config as base
from detailclip_jax.config import run_config

CONTINUE = Path(__file__).parents[1] / "vitb16_continue.py"


def get_config(arg=None):
    arg = base.parse_arg(arg, epochs=10)  # [FineCLIP]; CLIPSelf: 6
    c = run_config.load(f"{CONTINUE}:method=clip,epochs={arg.epochs}")
    c.batch_size = 256  # [FineCLIP]; CLIPSelf: 16
    c.views.crops = {
        "large": base.crop(scale=(0.5, 1.0), filter="bicubic"),  # [choice]
        # Up to 20 boxes of a grid of at most 6 x 6, with sides that differ at most twice, and crops of them in the size
        # that the teacher knows [CLIPSelf].  Here they lie anywhere, and are four, each of which costs a forward pass
        # [choice]: a pair costs 271 GFLOP, without the term 122, as XLA counts.
        "local": base.crop(count=4, kind="inside", scale=(1 / 36, 1.0), ratio=(0.5, 2.0), filter="bicubic"),
    }
    c.losses.weights.update({"clip": 1.0, "region": 1.0})  # [FineCLIP]
    c.losses.ramps.region = (0.0, 0.0)  # from the first step on [CLIPSelf, FineCLIP]: the start knows small crops
    c.optimizer.learning_rate, c.optimizer.weight_decay = 1e-5, 0.1  # [CLIPSelf, FineCLIP]
    c.optimizer.loaded_rate, c.optimizer.layer_decay = 1.0, 1.0  # the same rate everywhere [CLIPSelf, FineCLIP]
    c.optimizer.warmup_steps, c.optimizer.warmup_start = 1000, 1e-8  # a warm-up from 0 [CLIPSelf, FineCLIP]
    c.optimizer.learning_rate_end = 0.0  # [choice]
    c.ema.start = c.ema.end = 0.999  # constant, as for other trained students in this folder [choice]
    c.model.remat = "full"  # the least memory
    return c
