"""The embedded default: DetailCLIP on scenes composed of real drawings.  It takes minutes on two CPU cores, no network.

    python -m detailclip_jax.main --config=configs/stickers.py
    python -m detailclip_jax.main --config=configs/stickers.py:method=clip --config.seed=1
    python -m detailclip_jax.main --config=configs/stickers.py:teacher=enclosing
    python -m detailclip_jax.main --config=configs/stickers.py:method=clip,region=1
    python -m detailclip_jax.main --config=configs/stickers.py:method=detailclip,token_set=1
    python -m detailclip_jax.main --config=configs/stickers.py:method=cosmos,local=False
    python -m detailclip_jax.main --config=configs/stickers.py:method=clip,states=True --config.data.negatives=2
    python -m detailclip_jax.main --config=configs/stickers.py:method=clip,size=small --workdir=runs/small
    python -m detailclip_jax.main --config=configs/stickers.py:method=dinotxt --config.init=runs/small

Results on these scenes cannot be compared with other benchmarks.  Comments explain the differences from the paper.
"""

from detailclip_jax import config as base
from detailclip_jax.config import sizes
from detailclip_jax.data.stickers import statements
from detailclip_jax.data.stickers.scene_captions import words
from detailclip_jax.data.stickers.scene_source import noun_names
from detailclip_jax.data.tokenizer import Tokenizer


def get_config(arg=None):
    arg = base.parse_arg(
        arg, method="detailclip", teacher="same", region=0.0, token_set=0.0, local=True, size="tiny", states=False
    )
    if (arg.method, arg.teacher) not in ((arg.method, "same"), ("detailclip", "enclosing")):
        raise ValueError(f"config argument teacher={arg.teacher}: known are same and, for detailclip, enclosing")
    if arg.size not in ("tiny", "small"):
        raise ValueError(f"config argument size={arg.size}: known are tiny and small")
    c = base.default()
    c.method = arg.method
    c.batch_size = 128
    c.total_steps = 600  # 77k scenes
    c.steps_per_epoch = 60  # a tenth of the run; length of the warm-up and of "epoch 0" of the patch temperature
    c.log_every = 10
    c.checkpoint_every = 100

    c.data.source = "stickers"
    c.data.held_out = 1000  # for your data, with --config.data.source=records; stickers have own held-out scenes

    c.model.size = "tiny"  # patch size 8 (an 8 x 8 grid), width 96, 3 blocks
    c.model.image_size = 64
    c.model.context_length = 24  # captions have at most 21 tokens; the causal mask makes the cut exact

    crop = c.views.crops.large
    crop.size = 64
    crop.scale = (0.5, 1.0)  # paper 4.1
    crop.jitter = (0.4, 0.4, 0.2, 0.0)  # no hue jitter: colour distinguishes the drawings of different nouns
    crop.gray_p = 0.0  # for the same reason
    crop.blur_sigma = (0.1, 0.6)  # 2 pixels at size 224 are .6 pixels at size 64
    crop.solarize_p = (0.0, 0.0)

    c.optimizer.learning_rate = 2e-3  # small model and batch; 1e-3 works too, but learns later
    c.optimizer.warmup_epochs = 1.0
    c.ema.start = 0.98  # with .996 -> 1 the teacher hardly changes in 600 steps; with .99 -> .998 it still lags
    c.ema.end = 0.99
    c.losses.pixel_eps = 1e-2  # patches of plain ground have no variance; with 1e-6 the target would be their noise

    CHANGES.get(c.method, paper)(c)
    if arg.teacher == "enclosing":
        enclosing(c)
    if not arg.local:
        if "local" not in c.views.crops:
            raise ValueError(f"config argument local=False: method {c.method} has no local crops in this config")
        del c.views.crops.local
    if arg.region:
        region(c, arg.region)
    if arg.token_set:
        token_set(c, arg.token_set)
    if arg.states:
        states(c)
    if arg.size == "small":  # an image encoder of twice the width and depth, to be a frozen teacher
        c.model.size = "custom"
        c.model.custom = sizes.SIZES["tiny"]._replace(width=192, depth=6, num_heads=6)._asdict()
    return c


# Changes of the common config for each method, after the method's own config in configs/baselines.


def paper(c):
    """DetailCLIP: distillation weights of 0.1; at weight 1 the CLS term slows the contrastive loss in short runs."""
    c.losses.weights.cls = c.losses.weights.patch = 0.1


def one_view(c):
    """CLIP and SigLIP: one view, and a trained patch embedding; DetailCLIP's is random and frozen."""
    crop = c.views.crops.large
    crop.count, crop.blur_p, crop.solarize_p = 1, (0.1,), (0.0,)
    c.model.freeze_patch_embed = False


def superclip(c):
    """SuperCLIP: CLIP, and the term token_set."""
    one_view(c)
    token_set(c, 1.0)


def token_set(c, weight):
    """The term token_set, over the tokens of these captions; with --config.data.source of other data over all."""
    c.losses.weights.token_set = weight
    c.losses.token_ids = ids_of(words())


def states(c):
    """Captions that state one fact, scenes that are drawn for it, and views of the whole scene, of which it is true."""
    c.data.caption, c.data.stickers.scenes = "states", "stated"
    c.model.context_length, c.data.phrase_length = 48, 8  # nothing is cut
    c.data.text_buckets = (20,)  # one program: statements have up to 17 tokens
    crop = c.views.crops.get("clean", c.views.crops.large)
    crop.kind, crop.flip = "whole", 0.0
    if c.losses.token_ids:
        c.losses.token_ids = ids_of((*words(), *statements.words()))


def ids_of(texts):
    """The ids of the tokens of texts."""
    return tuple(sorted({id for text in texts for id in Tokenizer().encode(text)[1:-1]}))


def slip(c):
    """SLIP: a clean view for the caption; larger SSL crops than SLIP's (.08-1), where drawings would be too small."""
    c.views.crops.clean = base.crop(size=c.model.image_size, filter="bicubic")
    crop = c.views.crops.large
    crop.scale, crop.flip, crop.blur_p = (0.25, 1.0), 0.5, (0.5, 0.5)
    c.model.freeze_patch_embed = False


def maskclip(c):
    """MaskCLIP: a quarter of the patches is visible."""
    one_view(c)
    c.masking.strategy, c.masking.ratio = "random", 0.75
    c.losses.weights.patch = 0.05


def enclosing(c):
    """The teacher's attention is computed on a crop that encloses the student's views (paper 4.1.1)."""
    c.views.crops.enclosing = base.crop(size=c.model.image_size, kind="enclosing")
    c.views.teacher = "enclosing"


def region(c, weight):
    """The term region; a method without local crops gets four for the teacher, with sides of about half the view's."""
    if "local" not in c.views.crops:
        c.views.crops.local = base.crop(count=4, size=32, kind="inside", scale=(0.15, 0.4), filter="bicubic")
    c.losses.weights.region = weight


def aclip(c):
    """A-CLIP: the teacher gets a larger crop, and cells of 2 x 2 patches are removed."""
    enclosing(c)
    c.masking.granularity = "cell2x2"


def mae(c):
    """MAE: a decoder two thirds as wide as the encoder; MAE's weight decay and betas."""
    one_view(c)
    c.views.crops.large.flip = 0.5
    c.model.image_style.positions, c.model.image_style.init = "sincos", "xavier"
    c.model.decoder_width, c.model.decoder_depth = 64, 2
    c.masking.strategy, c.masking.ratio, c.masking.rounded = "random", 0.75, "kept"  # rounded: as in MAE's code
    c.optimizer.peak_twice = False  # as in MAE's code
    c.optimizer.betas, c.optimizer.weight_decay = (0.9, 0.95), 0.05


def dino(c):
    """DINO: four local crops of 16 patches; larger crops than DINO's (.05-.4), in which drawings would be too small."""
    c.views.crops.local = local(c)
    c.views.crops.large.flip = 0.5
    c.model.freeze_patch_embed = False
    c.model.drop_path = 0.1
    c.model.interpolation = "ibot"  # of positions for local crops, as in DINO's code
    c.optimizer.betas, c.optimizer.weight_decay, c.optimizer.weight_decay_end = (0.9, 0.999), 0.04, 0.4
    c.optimizer.clip_norm, c.optimizer.clip_per_tensor = 3.0, True
    c.optimizer.frozen_prototype_epochs = 1.0


def ibot(c):
    """iBOT: DINO's crops, block masks on the 8 x 8 grid."""
    dino(c)
    crop = {**c.views.crops.large.to_dict(), "mask_grid": 8}
    c.views.crops.large = base.crop(**crop)
    c.model.freeze_gain = False


def attmask(c):
    """AttMask: DINO's crops."""
    dino(c)
    c.masking.strategy = "attention_hint"
    c.model.freeze_gain = False


def silc(c):
    """SILC: the whole scene, and DINO's crops; the optimiser is CLIP's."""
    one_view(c)
    c.views.crops.clean = base.crop(size=c.model.image_size, kind="whole")
    c.views.crops.local = local(c)
    c.views.crops.large.update(count=2, blur_p=(0.5, 0.5), solarize_p=(0.0, 0.0))  # no flip: captions say "left"
    c.losses.weights.cls = 0.1  # as for DetailCLIP
    c.ema.start = c.ema.end = 0.98  # constant, as in configs/beyond/silc.py


def tips(c):
    """TIPS: one global crop, four local ones, three quarters of the patches replaced."""
    one_view(c)
    c.views.crops.local = local(c)
    c.views.crops.large.update(blur_p=(0.5,))  # no flip: captions say "left"
    c.model.interpolation = "tips"  # of positions for local crops, as in configs/beyond/tips.py
    c.masking.strategy, c.masking.ratio = "random", 0.75
    c.losses.weights.cls, c.losses.weights.patch = 0.1, 0.2  # 1 : 2 as in TIPS, a tenth of it as for DetailCLIP
    c.losses.patch_temperature = (0.04, 0.04)  # constant, as in configs/beyond/tips.py


def tipsv2(c):
    """TIPSv2: a patch loss over all patches."""
    tips(c)
    c.losses.patch_over = "all"


def siglip2(c):
    """SigLIP 2: TIPS's crops and the whole scene; for the paper's second stage add --config.init=WORKDIR of siglip."""
    tips(c)
    c.views.crops.large.flip = 0.5  # the captions are compared with the whole scene alone
    c.views.crops.clean = base.crop(size=c.model.image_size, kind="whole")
    c.model.interpolation = "bicubic"  # as in configs/beyond/siglip2.py
    c.masking.ratio = 0.5
    c.losses.weights.cls, c.losses.weights.patch = 0.1, 0.025  # 4 : 1 as in SigLIP 2
    c.ema.start = c.ema.end = 0.98


def local(c):
    """Returns DINO's four local crops of 16 patches, see `dino`."""
    large = c.views.crops.large
    jitter = {"filter": "bicubic", "flip": 0.5, "jitter": large.jitter, "jitter_p": large.jitter_p}
    return base.crop(count=4, size=32, scale=(0.15, 0.4), **jitter)


def supervised(c):
    """Supervised: the label is the noun of the scene's largest object."""
    one_view(c)
    c.model.num_classes = len(noun_names())
    c.optimizer.weight_decay = 0.05


def sentences(c, rule, num):
    """Several captions of a scene, each of some sentences of its long caption: objects, relations, sizes."""
    c.data.caption, c.data.num_captions = f"{rule}:long", num
    c.model.context_length = 64  # five sentences


def cosmos(c):
    """COSMOS: four local crops, larger than COSMOS's (.05-.4); two captions of several sentences and four of one."""
    crop = c.views.crops.large
    jitter = {"filter": "bicubic", "jitter": crop.jitter, "jitter_p": crop.jitter_p}  # no flip: captions say "left"
    c.views.crops.local = base.crop(count=4, size=32, scale=(0.15, 0.4), **jitter)
    c.model.freeze_patch_embed = False
    sentences(c, "crops", 6)
    c.data.text_buckets = ()  # one program: captions have up to 57 tokens
    c.model.interpolation = "ibot"  # of positions for local crops, as in COSMOS's code
    c.ema.end = c.ema.start  # constant, as in configs/beyond/cosmos.py


def flair(c):
    """FLAIR: CLIP's view, four captions."""
    one_view(c)
    sentences(c, "diverse", 4)
    c.data.text_buckets = (48,)  # one program: captions have up to 37 tokens


def beta(c):
    """B-CLIP: CLIP's view, a caption of up to five sentences and each of these sentences."""
    one_view(c)
    sentences(c, "parts", 6)
    c.data.text_buckets = ()  # one program: captions have up to 57 tokens
    c.losses.weights.beta = 1.0


def dinotxt(c):
    """dino.txt: CLIP's view, for the frozen encoder of another run: add --config.init=WORKDIR."""
    one_view(c)
    c.optimizer.frozen = "image"


CHANGES = {
    "clip": one_view,
    "siglip": one_view,
    "silc": silc,
    "tips": tips,
    "tipsv2": tipsv2,
    "siglip2": siglip2,
    "cosmos": cosmos,
    "flair": flair,
    "superclip": superclip,
    "beta": beta,
    "dinotxt": dinotxt,
    "slip": slip,
    "maskclip": maskclip,
    "aclip": aclip,
    "mae": mae,
    "dino": dino,
    "ibot": ibot,
    "attmask": attmask,
    "supervised": supervised,
}
