"""The fields of a pretraining run, with meaning, source and allowed values of each.

Config files under `configs/` start from `default()` and set the fields that differ.
"""

import functools
import re
from typing import Any

from ml_collections import ConfigDict

from detailclip_jax.config.data_path import KINDS
from detailclip_jax.config.declarations import (
    BELOW_1,
    CODE,
    FROM_0,
    FROM_1,
    OURS,
    POSITIVE,
    POSITIVE_SHARE,
    PREFETCH,
    SHARE,
    Field,
    Group,
    Range,
    built,
    field_in,
)
from detailclip_jax.config.sizes import CUSTOM, MAX_DEPTH, SIZES

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)  # OpenAI's
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
SLIP = "SLIP's, as in the paper"
# Names of tables of other rooms; tests/config/test_fields.py compares them.
TEXT_ACTIVATIONS = ("gelu", "quick_gelu", "gelu_tanh", "relu")
ACTIVATIONS = (*TEXT_ACTIVATIONS, "swiglu")
FILTERS = ("bicubic", "bilinear")
POSITION_RECIPES = ("bicubic", "ibot", "timm", "bilinear", "tips")

RUN: Group = {
    "method": Field("detailclip", "method; the table METHODS of methods/ has them", "paper"),
    "seed": Field(0, "seed of the parameters, the order of examples, the crops and the captions", OURS),
    "init": Field("", "checkpoint to start from: its networks, sizes and preprocessing (training/warm_start.py)", OURS),
    "init_text": Field(
        "", "checkpoint whose text encoder is loaded, and not that of init; the projection of texts is then fresh", OURS
    ),
    "init_text_positions": Field(
        "keep",
        "text positions of init: keep has the context of the checkpoint; longclip and linear stretch them to "
        "model.context_length (models/positions.py)",
        "longclip: Long-CLIP (arXiv 2403.15378), 77 to 248",
        choices=("keep", "longclip", "linear"),
    ),
    "init_required": Field(
        False, "whether a run without init is refused, because the config continues a checkpoint", OURS, may_change=True
    ),
    "batch_size": Field(
        4096, "image-text pairs per step, over all devices", "paper 4.1; reference: 256 x 16 A100", range=FROM_1
    ),
    "accumulation": Field(
        1,
        "chunks of a batch on each device (exact gradient accumulation): less memory, the same gradients",
        OURS,
        range=FROM_1,
        may_change=True,
    ),
    "num_epochs": Field(
        25,
        "length of the run in epochs; used if total_steps is not set and the data set is finite",
        "paper 4.1",
        range=FROM_1,
        may_change=True,
    ),
    "total_steps": Field(
        None,
        "length of the run in steps; default: num_epochs * steps_per_epoch",
        OURS,
        int,
        range=FROM_1,
        may_change=True,
    ),
    "steps_per_epoch": Field(
        None, "optimiser steps per epoch of the schedules; default: examples // batch_size", OURS, int, range=FROM_1
    ),
    "log_every": Field(50, "steps between two lines of metrics.jsonl", OURS, range=FROM_1, may_change=True),
    "checkpoint_every": Field(1000, "steps between two checkpoints", OURS, range=FROM_1, may_change=True),
    "max_to_keep": Field(2, "checkpoints that stay on disk", OURS, range=FROM_1, may_change=True),
    "best_metric": Field(
        "", "metric such as zero_shot/ema/top1; the checkpoint with its best value is also kept", OURS, may_change=True
    ),
    "evaluate_every": Field(0, "steps between two evaluations; 0: only at the end", OURS, may_change=True),
    "evaluate_at_end": Field(True, "whether a finished run is evaluated", OURS, may_change=True),
    "evaluators": Field({}, "evaluators by name, with options; {}: those that fit the data", OURS, may_change=True),
    "profile_steps": Field(0, "number of steps in the profile for TensorBoard; 0: no profile", OURS, may_change=True),
}
MESH: Group = {
    "fsdp": Field(1, "devices that share one copy of the training state", OURS, range=FROM_1, may_change=True)
}
DATA: Group = {
    "source": Field("records", "stickers, records (ArrayRecord shards) or tfds", OURS, choices=KINDS),
    "path": Field(
        "",
        "folder of the shards; tfds: name:version or a builder's directory; A@3,B@1: two sets, three examples of A for "
        "each of B; A,tfds:B: two sets in proportion to their sizes.  An epoch has as many examples as all sets",
        OURS,
        may_change=True,
    ),
    "split": Field("train", "training split", OURS),
    "held_out": Field(
        0,
        "examples held out of training for the evaluation at the end: at most 2 % (or 8, if that is more), never more "
        "than a tenth; has no effect if the data set has a split val, validation, test or dev",
        "paper: none",
    ),
    "caption": Field(
        "random",
        "one caption of an example: random, first, concat (title + description, as in the reference), or "
        "field:NAME,... (the first of these that is not blank).  Several captions: crops (COSMOS: two of several "
        "sentences, then one sentence each), diverse (FLAIR: 1 to 3 sentences each), parts (B-CLIP: several "
        "sentences, then each of them) or debias (DeBias-CLIP: all sentences, then some without the first, their "
        "words at drawn positions), of all captions or of named fields (crops:NAME,...); sources:A,B/C (TIPS: one "
        "caption of field A, one of field B or C).  Of stickers also states (a fact of a scene that was drawn for it)",
        "paper: a random valid caption",
    ),
    "num_captions": Field(
        None,
        "captions per example, with the caption rules crops, diverse and parts; default: 8",
        "COSMOS: 2 + 6; FLAIR",
        int,
    ),
    "negatives": Field(
        0,
        "false captions of an example, and false phrases of each of its regions, in arrays of their own; 0: none",
        "ours; NegCLIP: 1, CE-CLIP: 4, FG-CLIP: 10",
        range=FROM_0,
    ),
    "regions": Field(
        0, "boxes of an example with a phrase each, drawn from those of its record; 0: none", "FG-CLIP: 4", range=FROM_0
    ),
    "phrase_length": Field(
        0,
        "tokens of the phrase of a region, at most; 0: model.context_length",
        "FG-CLIP: 77, captions 248",
        range=FROM_0,
    ),
    "relations": Field(
        (0.0, 0.0),
        "caption rule states, shares of the run: statements of a side are unary (a frog at the top) before the first, "
        "relations (a frog above a camera) from the second on; in between the share of relations rises linearly",
        OURS,
        range=SHARE,
        ascending=True,
    ),
    "ordinary_ratio": Field(
        0.0,
        "caption rule states: share of the scenes whose caption is an ordinary one (a frog and a camera), without "
        "false texts, in place of a statement",
        OURS,
        range=SHARE,
    ),
    "shuffled": Field(
        "",
        "for control experiments: negatives or images; each example has those of another one",
        OURS,
        choices=("", "negatives", "images"),
    ),
    "keep_eot": Field(
        True,
        "whether a truncated caption keeps its EOT token; False with CLIP's tokenizer only",
        "ours; reference: False",
    ),
    "tokenizer": Field(
        "clip",
        "clip, or the file of another vocabulary: tokenizer.json (SigLIP), or *.model of sentencepiece (TIPS); the "
        "record has its absolute path.  As in their published code, texts for SigLIP's pooling (last) and TIPS's "
        "(mean) are converted to lower case; for eot, the file's normaliser says so",
        "CLIP",
        may_change=True,
    ),
    "tokenizer_digest": Field(
        "", "digest of that file, set by the import and by training; a file of another digest is refused", OURS
    ),
    "text_buckets": Field(
        (32, 48),
        "text lengths: a batch is trimmed to the smallest that fits all its captions (exact); (): off",
        OURS,
        range=FROM_1,
        min_length=0,
        may_change=True,
    ),
    "num_workers": Field(0, "processes that decode and crop; 0: threads", OURS, may_change=True),
    "prefetch": Field(2, "batches that are loaded in advance", OURS, range=PREFETCH, may_change=True),
    "reducing_gap": Field(
        2.0, "JPEGs are decoded at 1/2, 1/4 or 1/8 if crops stay this many times as large as their views; 0: off", OURS
    ),
    "max_bad_ratio": Field(
        0.01, "share of unreadable records above which the run stops", OURS, range=SHARE, may_change=True
    ),
}
STICKERS: Group = {
    "num_scenes": Field(2**24, "number of scenes of the source stickers", OURS, range=FROM_1),
    "seed": Field(0, "seed of the content of the scenes", OURS),
    "scenes": Field(
        "mixed",
        "mixed: also plain backgrounds and objects of any size; textured: neither of them; stated: as mixed, with "
        "objects for one fact that captions can state (data.caption=states)",
        OURS,
        choices=("mixed", "textured", "stated"),
    ),
    "kinds": Field(
        "",
        "kinds of the facts that stated scenes are drawn for: attribute, count, side, size, with commas between them; "
        "one that is written twice is drawn twice as often; '': all, equally often",
        OURS,
    ),
    "ordinary_ratio": Field(
        0.0,
        "share of the stated scenes that are drawn for no fact, as mixed ones; their captions are ordinary ones",
        OURS,
        range=SHARE,
    ),
}
VIEWS: Group = {
    "mixup": Field(0.0, "alpha of mixup over the global batch (supervised); 0: off", "off in the paper", range=FROM_0),
    "cutmix": Field(
        0.0, "alpha of CutMix over the global batch (supervised); 0: off", "off in the paper", range=FROM_0
    ),
    "native": Field(
        (),
        "patches of a training image that keeps its aspect: one number, or several of which each batch has one; for "
        "clip and siglip, with preprocess.resize native; (): squares",
        "SigLIP 2's NaFlex: 128, 256, 576, 784, 1024 in the last tenth",
        range=FROM_1,
        min_length=0,
    ),
    "native_budget": Field(
        0,
        "patches of a batch over all devices, at most, padding included: a batch of native images has the largest "
        "multiple of batch_size images that fits; 0: batch_size images",
        "0 in SigLIP 2; open_clip: 16,384 on each device",
        range=FROM_0,
    ),
    "native_patch_sizes": Field(
        (),
        "sides of a patch in pixels, of which each batch of native images has one, seen through the model's patch "
        "embedding, resized; (): the model's",
        "the model's in SigLIP 2; drawn in FlexiViT and open_clip",
        range=FROM_1,
        min_length=0,
    ),
    "patch_dropout": Field(
        0.0,
        "share of the patches that the image encoder does not see in training, drawn anew at each step; for methods "
        "with one pass, such as clip and siglip; 0: sees all",
        "FLIP: .5 or .75",
        range=BELOW_1,
    ),
    "patch_dropout_until": Field(
        1.0,
        "share of the run from which on it sees all patches (unmasked tuning), at least in the last step; 1: never",
        "ours; FLIP: .99, as a second run",
        range=POSITIVE_SHARE,
    ),
    "teacher": Field(
        "same",
        "input of the teacher; same: the student's views; enclosing: a crop that contains them",
        CODE,
        choices=("same", "enclosing"),
    ),
}
PREPROCESS: Group = {  # of images in evaluation; mean and std also in training, where their ranges keep pixels finite
    "filter": Field(
        "bilinear",
        "filter for resizing in evaluation: bilinear or bicubic (CLIP, MAE, DINO, iBOT, timm)",
        SLIP,
        choices=FILTERS,
        may_change=True,
    ),
    "resize": Field(
        "shorter_side",
        "shorter_side; squash: both sides, without keeping the aspect ratio; or native: the whole image, in at most "
        "max_patches patches, keeping the aspect ratio (SigLIP 2's NaFlex)",
        SLIP,
        choices=("shorter_side", "squash", "native"),
        may_change=True,
    ),
    "max_patches": Field(
        0,
        "patches of an image that is resized native, at most; 0: as many as a square of model.image_size has",
        "SigLIP 2's processor: 256",
        range=FROM_0,
        may_change=True,
    ),
    "crop_ratio": Field(
        1.0,
        "side of the center crop divided by the resized side; 0.875: 224 of 256",
        SLIP,
        range=POSITIVE_SHARE,
        may_change=True,
    ),
    "decoding": Field(
        "upright",
        "upright: by EXIF, alpha over white; or pillow: its convert('RGB'), as in open_clip and timm",
        OURS,
        choices=("upright", "pillow"),
        may_change=True,
    ),
    "mean": Field(IMAGENET_MEAN, "mean of pixels in [0, 1], per channel", CODE, range=Range(-1e3, 1e3)),
    "std": Field(IMAGENET_STD, "standard deviation of pixels in [0, 1], per channel", CODE, range=Range(1e-6, 1e3)),
}
CROP: Group = {  # fields of one entry of views.crops; the defaults have no photometric augmentation
    "count": Field(1, "number of views of this kind", "CLIP", range=FROM_1),
    "size": Field(224, "pixels along a side; no effect with views.native", "paper 4.1", range=FROM_1),
    "kind": Field(
        "random",
        "random; enclosing: a crop that contains all large crops; inside: random within the first large crop; whole: "
        "the whole image, squashed to a square",
        "paper 4.1.1; SILC",
        choices=("random", "whole", "enclosing", "inside"),
    ),
    "scale": Field(
        (0.5, 1.0),
        "share of the image's area, minimum and maximum; of a crop inside: of the large crop's",
        "paper 4.1; reference: (.14, 1)",
        range=POSITIVE_SHARE,
        ascending=True,
    ),
    "ratio": Field(
        (3 / 4, 4 / 3), "width divided by height, minimum and maximum", CODE, range=POSITIVE, ascending=True
    ),
    "filter": Field("bilinear", "filter for resizing", "SLIP and A-CLIP", choices=FILTERS),
    "flip": Field(0.0, "probability of a horizontal flip", CODE, range=SHARE),
    "jitter": Field(
        (0.0, 0.0, 0.0, 0.0), "strength for brightness, contrast, saturation, hue", "CLIP: none", range=FROM_0
    ),
    "jitter_p": Field(0.0, "probability of the jitter", "CLIP: none", range=SHARE),
    "gray_p": Field(0.0, "probability of a grey view", "CLIP: none", range=SHARE),
    "blur_p": Field((0.0,), "probability of a blur, for each view", "CLIP: none", range=SHARE, per_view=True),
    "blur_sigma": Field(
        (0.1, 2.0), "sigma of the blur in pixels, minimum and maximum", CODE, range=POSITIVE, ascending=True
    ),
    "solarize_p": Field((0.0,), "probability of solarisation, for each view", "CLIP: none", range=SHARE, per_view=True),
    "mask_grid": Field(0, "patches along a side of the grid on which blocks are sampled; 0: no blocks", "iBOT"),
    "mask_p": Field(0.5, "probability that a view is masked by blocks", "iBOT", range=SHARE),
    "mask_ratio": Field(
        (0.1, 0.5), "share of the patches in blocks, minimum and maximum", "iBOT", range=SHARE, ascending=True
    ),
}
LARGE: Group = {  # fields of the two large views (DINO's global views) whose defaults differ from CROP
    "count": Field(2, "number of views of this kind: u and v", "paper 3.2", range=FROM_1),
    "filter": Field("bicubic", "filter for resizing", CODE, choices=FILTERS),
    "jitter": Field((0.4, 0.4, 0.2, 0.1), "strength for brightness, contrast, saturation, hue", CODE, range=FROM_0),
    "jitter_p": Field(0.8, "probability of the jitter", CODE, range=SHARE),
    "gray_p": Field(0.2, "probability of a grey view", CODE, range=SHARE),
    "blur_p": Field((0.1, 0.1), "probability of a blur, for each view", CODE, range=SHARE, per_view=True),
    "solarize_p": Field((0.2, 0.2), "probability of solarisation, for each view", CODE, range=SHARE, per_view=True),
}
NOT_LARGE = ("mask_grid", "mask_p", "mask_ratio")
MODEL: Group = {
    "size": Field(
        "B/16",
        "size of the networks; config/sizes.py has the names; custom: the fields of model.custom",
        "paper 4.1",
        choices=(*SIZES, CUSTOM),
    ),
    "custom": Field({}, "width, depth, heads, ... of the size custom", OURS),
    "image_size": Field(224, "pixels along a side", "paper 4.1", range=FROM_1),
    "context_length": Field(77, "maximum number of tokens of a caption", "CLIP", range=Range(3, 2**16)),
    "vocab_size": Field(49408, "number of tokens in the vocabulary", "CLIP", range=FROM_1),
    "prototypes": Field(
        None,
        "outputs of the prototype heads of the CLS and patch terms; default: by size (8192 from S/16 up)",
        CODE,
        int,
    ),
    "num_classes": Field(None, "number of classes of the method supervised", OURS, int),
    "decoder_width": Field(None, "width of the decoder; default: the encoder's width", CODE, int),
    "decoder_depth": Field(None, "blocks of the decoder; default: 1", CODE, int, range=Range(0, MAX_DEPTH)),
    "class_tokens": Field(
        1,
        "class tokens and registers of the image encoder; only the first has a position; tips: one for each caption",
        OURS,
        range=FROM_1,
    ),
    "drop_path": Field(
        0.0,
        "stochastic depth: rate of the last block, increasing linearly from 0; only for the student",
        CODE,
        range=BELOW_1,
    ),
    "freeze_gain": Field(
        True, "whether the weight norm of the prototypes has a fixed gain of 1; iBOT trains it at ViT-S", CODE
    ),
    "freeze_patch_embed": Field(
        True, "whether the patch embedding keeps its initial values", "reference, after MoCo v3"
    ),
    "cross_pools": Field(
        True, "cosmos: whether crops attend to words, and texts to patches, before the teacher is compared", "COSMOS"
    ),
    "text_activation": Field(
        "quick_gelu",
        "activation of the text encoder: gelu, quick_gelu, gelu_tanh or relu",
        "CLIP",
        choices=TEXT_ACTIVATIONS,
    ),
    "image_is_embedding": Field(
        False,
        "whether the image's feature is its embedding: the projection is the identity, not trained, and texts are "
        "projected to the image encoder's width",
        "CLIP",
    ),
    "dtype": Field(
        "float32",
        "dtype of matrix products and tokens; parameters, norms, softmax, sums and losses are float32",
        "ours",
        choices=("float32", "bfloat16"),
    ),
    "matmul_precision": Field(
        None,
        "precision of matrix products on GPUs and TPUs: default, high (TensorFloat-32) or highest; if it is not set, "
        "float32 products are exact in float32, and bfloat16 products use the device's default.  Losses, centers and "
        "attention maps are exact",
        OURS,
        str,
        choices=("default", "high", "highest"),
    ),
    "interpolation": Field(
        "bicubic",
        "of positions, for images of another size: bicubic (PyTorch), bilinear (PE), ibot (DINO, COSMOS), "
        "timm (open_clip) or tips",
        OURS,
        choices=POSITION_RECIPES,
    ),
    "remat": Field(
        "auto",
        "what the backward pass recomputes: none, dots (all but large products) or full; auto: dots for a wide encoder "
        "on a CPU, else none",
        OURS,
        choices=("auto", "none", "dots", "full"),
        may_change=True,
    ),
    "scan": Field(
        None,
        "compiles one block, and loops over stacked parameters: faster compilation, same numbers; if it is not set, "
        "where remat=auto chooses dots",
        OURS,
        bool,
    ),
    "attention": Field(
        "auto",
        "xla, or cudnn (NVIDIA, half precision); auto: cudnn if it can run, else xla",
        OURS,
        choices=("auto", "xla", "cudnn"),
        may_change=True,
    ),
}
IMAGE_STYLE: Group = {  # see models/vit.py; imported checkpoints can have other values
    "norm_eps": Field(1e-6, "epsilon of the LayerNorms of the image encoder", CODE, range=POSITIVE),
    "activation": Field(
        "gelu",
        "activation of the image encoder: gelu, quick_gelu, gelu_tanh, relu, or swiglu: MLPs with a gate (DINOv2)",
        CODE,
        choices=ACTIVATIONS,
    ),
    "pre_norm": Field(False, "LayerNorm before the first block (OpenAI's CLIP)", CODE),
    "patch_bias": Field(True, "whether the patch embedding has a bias", CODE),
    "pooling": Field(
        "cls",
        "how the image's feature is computed: cls, mean, norm_of_mean, attention (SigLIP) or attention_with_cls (PE)",
        CODE,
        choices=("cls", "mean", "norm_of_mean", "attention", "attention_with_cls"),
    ),
    "pool_heads": Field(0, "heads of an attention pool with an MLP of four times the width; 0: as the blocks", CODE),
    "final_norm": Field(True, "LayerNorm after the last block (PE-Spatial has none)", CODE),
    "positions": Field(
        "learnt",
        "positions; learnt, sincos: fixed (MAE), rotary: queries and keys are turned in every block (DINOv3), or "
        "learnt_rotary: both (PE)",
        CODE,
        choices=("learnt", "sincos", "rotary", "learnt_rotary"),
    ),
    "init": Field(
        "normal",
        "initialisation of weights; normal, or xavier: as in MAE, also in the decoder",
        CODE,
        choices=("normal", "xavier"),
    ),
    "position_std": Field(
        0.02,
        "standard deviation of the initial values of learnt positions; with 1 they are as large as embedded patches",
        CODE,
        range=POSITIVE,
    ),
}
POOLED = AT_EOT, AT_LAST, MEAN = ("eot", "last", "mean")  # model.text_style.pooling
TEXT_STYLE: Group = {  # see models/text_encoder.py; imported checkpoints can have other values
    "norm_eps": Field(1e-5, "epsilon of the LayerNorms of the text encoder", "CLIP", range=POSITIVE),
    "causal": Field(True, "whether a token attends to earlier tokens only", "CLIP"),
    "pooling": Field(
        AT_EOT,
        "whose feature is the caption's: that of eot, of the last position (SigLIP), or the mean (TIPS)",
        "CLIP",
        choices=POOLED,
    ),
    "projection_bias": Field(False, "whether the text projection has a bias (SigLIP)", "CLIP"),
    "end": Field(None, "id of the token whose feature eot takes (MetaCLIP 2); default: the largest", "CLIP", int),
}
MASKING: Group = {
    "strategy": Field(
        "attention_low",
        "which patches are removed; masking.STRATEGIES has the names",
        "paper 3.2.3",
        choices=("attention_low", "attention_high", "attention_hint", "random"),
    ),
    "ratio": Field(0.5, "share of the patches that are removed", "paper 3.2.3", range=SHARE),
    "rounded": Field(
        "removed",
        "which number of patches is rounded down: removed, or kept (MAE's code)",
        OURS,
        choices=("removed", "kept"),
    ),
    "drawn_ratio": Field(
        (0.1, 0.5),
        "attmask: share of hidden patches, sampled per step between these two values",
        "AttMask",
        range=SHARE,
        ascending=True,
    ),
    "probability": Field(0.5, "attmask: probability that a view is masked", "AttMask", range=SHARE),
    "granularity": Field(
        "patch",
        "unit that is removed; patch: 98 of 196 patches are kept; cell2x2: 100 of 196",
        "paper; reference: cell2x2",
        choices=("patch", "cell2x2"),
    ),
}
LOSSES: Group = {
    "label_smoothing": Field(
        0.0, "supervised: probability mass that is distributed over all classes", OURS, range=SHARE
    ),
    "simclr_temperature": Field(
        0.1, "temperature of the contrastive loss between views", "SLIP, A-CLIP", range=POSITIVE
    ),
    "divergence": Field(
        "cross_entropy",
        "divergence of CLS and patch terms: cross_entropy, kl_teacher_student or kl_student_teacher (eq. 6 and 7)",
        CODE,
        choices=("cross_entropy", "kl_teacher_student", "kl_student_teacher"),
    ),
    "patch_over": Field(
        "removed",
        "patches of the patch term: removed, those hidden from the student (eq. 7), or all (TIPSv2)",
        "paper, eq. 7",
        choices=("removed", "all"),
    ),
    "student_temperature": Field(0.1, "temperature of the student's prototype logits", CODE, range=POSITIVE),
    "teacher_temperature": Field(
        (0.04, 0.04), "temperature of the teacher's CLS logits: at the start, after its warm-up", CODE, range=POSITIVE
    ),
    "patch_temperature": Field(
        (0.04, 0.07), "temperature of the teacher's patch logits: at the start, after its warm-up", CODE, range=POSITIVE
    ),
    "temperature_epochs": Field(
        1, "epochs of the warm-up of both temperatures; 1: the second value applies from epoch 1", CODE
    ),
    "center_momentum": Field(0.9, "momentum of the running mean of the teacher's logits", CODE, range=SHARE),
    "chunk_logits": Field(
        None,
        "prototype logits (tokens x C), or logits of token_set, computed at a time; 0: all; default: chosen from the "
        "memory of the devices",
        OURS,
        int,
        may_change=True,
    ),
    "beta": Field(
        0.5,
        "target of the other captions of an image in the term beta, whose own caption has target 1",
        "B-CLIP",
        range=SHARE,
    ),
    "negatives_scope": Field(
        "image",
        "images that a false caption is compared with; image: its own; batch: all, as further columns of the softmax "
        "(or sigmoids) of images over captions",
        "ours; NegCLIP: batch",
        choices=("image", "batch"),
    ),
    "region_scale": Field(
        1 / 0.07,
        "scale of the logits of regions and phrases at the start",
        "CLIP; FG-CLIP: that of the loaded run; FG-CLIP 2: 100",
        range=Range(1, 100),
    ),
    "region_negatives": Field(
        (1.0, 0.0),
        "weights within the term region_text of two contrasts with false phrases (data.negatives): of a region with "
        "its own, and of the regions of the batch with those of all",
        "ours; FG-CLIP: 5, 0; FG-CLIP 2: 7.5, 1.5",
        range=FROM_0,
    ),
    "token_ids": Field(
        (),
        "token ids that the term token_set predicts, such as those that occur in the data; (): the whole vocabulary",
        "SuperCLIP: the whole vocabulary",
        range=FROM_0,
        min_length=0,
        of_data=True,
    ),
    "normalise_pixels": Field(True, "whether the pixel target is normalised per patch", "reference, as in MAE"),
    "pixel_eps": Field(1e-6, "added to the variance of a patch", "reference, as in MAE", range=FROM_0),
    "clip_block": Field(
        0,
        "columns of the contrastive logits that are computed at a time (flair: also texts that images are pooled by); "
        "0: all if they are few, else chosen so that little memory is needed",
        OURS,
        may_change=True,
    ),
}
weight = functools.partial(Field, range=FROM_0)
WEIGHTS: Group = {
    "clip": weight(
        1.0,
        "weight of the image-text loss in the sum (eq. 10); also of siglip's and flair's",
        "paper, best row of table 4",
    ),
    "cls": weight(
        1.0, "weight of the CLS distillation; cosmos: of the cross-modal distillation", "paper, best row of table 4"
    ),
    "patch": weight(1.0, "weight of the patch distillation", "paper, best row of table 4"),
    "reconstruction": weight(1.0, "weight of the pixel reconstruction", "paper, best row of table 4"),
    "simclr": weight(1.0, "weight of the contrastive loss between views", "SLIP, A-CLIP"),
    "byol": weight(2.0, "weight of the BYOL term (online to EMA)", "A-CLIP"),
    "labels": weight(1.0, "weight of the supervised term", OURS),
    "token_set": weight(
        0.0, "weight of the classification of captions' tokens, with any method that has captions", "SuperCLIP: 1"
    ),
    "gram": weight(
        0.0, "weight of the Gram anchor, with any method that has a pass over all or the visible patches", "DINOv3: 2"
    ),
    "beta": weight(
        0.0, "weight of the contrast of captions with the image pooled by them, with any method", "B-CLIP: 1"
    ),
    "region": weight(
        0.0,
        "weight of the distance between patches pooled in the box of a local crop and the teacher's embedding of that "
        "crop, with any method that has captions",
        "CLIPSelf: 1",
    ),
    "negatives": weight(
        0.0,
        "weight of the contrast of an image's captions with its false ones (data.negatives), with any method that has "
        "captions",
        "NegCLIP: that of clip, with losses.negatives_scope batch",
    ),
    "region_text": weight(
        0.0,
        "weight of the contrast of patches pooled in the boxes of regions (data.regions) with their phrases, with any "
        "method that has captions",
        "FG-CLIP: .1, FG-CLIP 2: .2",
    ),
    "text_contrast": weight(
        0.0,
        "weight of the contrast between the phrases of regions (data.regions), with any method that has captions",
        "FG-CLIP 2: .1",
    ),
    "rank": weight(
        0.0,
        "weight of the margin between true and false captions, and phrases (data.negatives), with any method that has "
        "captions",
        "CE-CLIP and FG-CLIP 2: .2",
    ),
    "intra_modal": weight(
        0.0,
        "weight of the contrast of captions with their own false ones (data.negatives), with any method that has "
        "captions",
        "CE-CLIP's training script: .3",
    ),
    "distill": weight(
        0.0,
        "weight of the distance to the tokens of the frozen teacher distill.teacher, with any method that has a pass "
        "over all or the visible patches",
        OURS,
    ),
}
# Ramps that are not 0. The anchor is copied at the start of the ramp of gram; the class token of small crops has to
# learn something before regions learn from it.
STARTS = {"gram": (0.3333, 0.3333), "region": (0.2, 0.2)}
RAMPS: Group = {  # of the terms with these weights
    name: Field(
        STARTS.get(name, (0.0, 0.0)),
        f"shares of the run: the weight {name} is 0 before the first, rises by half a cosine, and is full from the "
        "second on",
        "ours; DINOv3's gram loss",
        range=SHARE,
        ascending=True,
    )
    for name in WEIGHTS
}
OPTIMIZER: Group = {
    "learning_rate": Field(5e-4, "learning rate at the end of the warm-up", CODE, range=POSITIVE),
    "warmup_start": Field(1e-6, "learning rate of the first step", CODE, range=FROM_0),
    "learning_rate_end": Field(1e-5, "learning rate at the end of the cosine", CODE, range=FROM_0),
    "warmup_epochs": Field(1.0, "length of the linear warm-up in epochs", CODE, range=FROM_0),
    "warmup_steps": Field(None, "length of the linear warm-up in steps, instead of warmup_epochs", OURS, int),
    "peak_twice": Field(
        True,
        "True: the last step of the warm-up has the peak rate, as the first step after it (SLIP's and DINO's code); "
        "False: only the step after it (MAE's code)",
        CODE,
    ),
    "betas": Field((0.9, 0.98), "beta_1 and beta_2 of AdamW", CODE, range=BELOW_1),
    "eps": Field(1e-8, "epsilon of AdamW", CODE, range=POSITIVE),
    "weight_decay": Field(0.5, "weight decay of AdamW; not applied to biases and norms", CODE, range=FROM_0),
    "decay_1d": Field(
        True, "whether class tokens, mask tokens and the gain of prototypes are decayed; False: as in open_clip", CODE
    ),
    "decay_positions": Field(
        True, "whether learnt positions are decayed; False: as in timm, with decay_1d=False", CODE
    ),
    "weight_decay_end": Field(
        None,
        "weight decay at the end of a cosine over all steps (DINO: 0.04 to 0.4); default: constant",
        CODE,
        float,
        range=FROM_0,
    ),
    "clip_norm": Field(0.0, "maximum norm of the gradient; 0: no clipping", CODE, range=FROM_0),
    "clip_per_tensor": Field(
        False, "True: the gradient of each parameter is clipped by its own norm (DINO); False: by the global norm", CODE
    ),
    "frozen_prototype_epochs": Field(
        0.0, "epochs in which the last layer of the prototype heads is frozen (DINO: 1)", CODE, range=FROM_0
    ),
    "frozen": Field(
        "",
        "parts that keep their weights, with commas between them: a network, such as image, text or image_projection; "
        "patch_embed; final_norm; or image:-2, which trains only the last two blocks of the image encoder and what "
        "follows them",
        OURS,
    ),
    "lora": Field(
        "",
        "encoders with low-rank adapters, network:rank with commas between them, such as image:8,text:8. Of these, "
        "which init must have, the adapters alone are trained; projections and heads are trained too, unless frozen "
        "names them. network:rank:alpha scales the adapters by alpha / rank; default: by 1",
        "LoRA (arXiv 2106.09685); default: ours",
    ),
    "lora_targets": Field(
        "attention",
        "layers that get an adapter: attention (qkv and the output projection), mlp, or attention,mlp",
        "LoRA's paper",
        choices=("attention", "mlp", "attention,mlp"),
    ),
    "loaded_rate": Field(
        1.0, "factor on the learning rate of the networks that are loaded from init", OURS, range=FROM_0
    ),
    "part_rates": Field({}, "network: factor on its learning rate; networks without an entry have 1", OURS),
    "layer_decay": Field(
        1.0,
        "factor on the learning rate per block below the last, in the encoders of part_rates",
        OURS,
        range=POSITIVE_SHARE,
    ),
}
EMA: Group = {
    "start": Field(
        0.996,
        "momentum of the teacher at step 0; follows a cosine over all steps",
        "paper 3.2.1; reference",
        range=SHARE,
    ),
    "end": Field(1.0, "momentum of the teacher at the last step", "paper 3.2.1; reference", range=SHARE),
}
DISTILL: Group = {
    "teacher": Field("", "workdir of the frozen teacher of the term distill: a run or an import", OURS),
    "size": Field(
        0, "pixels along a side of what this teacher sees; 0: the size of its own images", OURS, range=FROM_0
    ),
    "record": Field({}, "sizes and preprocessing of this teacher, copied from its workdir", OURS),
}
LOGGING: Group = {  # none of them changes what is computed
    "images_every": Field(
        500,
        "steps between two images of attention and kept patches in TensorBoard; 0: no images",
        OURS,
        may_change=True,
    ),
    "wandb": Field(
        "",
        "project of Weights & Biases that also gets metrics, images and config (pip install wandb; "
        "WANDB_MODE=offline works without network); '': none",
        OURS,
        may_change=True,
    ),
}
LARGE_CROP = {name: LARGE.get(name, field) for name, field in CROP.items() if name not in NOT_LARGE}
# The only declaration of the fields; `default` and `main --help-config` use it, in this order.
GROUPS: dict[str, Group] = {
    "": RUN,
    "mesh": MESH,
    "data": DATA,
    "data.stickers": STICKERS,
    "preprocess": PREPROCESS,
    "views": VIEWS,
    "views.crops.large": LARGE_CROP,
    "model": MODEL,
    "model.image_style": IMAGE_STYLE,
    "model.text_style": TEXT_STYLE,
    "masking": MASKING,
    "losses": LOSSES,
    "losses.weights": WEIGHTS,
    "losses.ramps": RAMPS,
    "optimizer": OPTIMIZER,
    "ema": EMA,
    "distill": DISTILL,
    "logging": LOGGING,
}


def field_of(name: str) -> Field | None:
    """Returns the declaration of a dotted name, None if unknown; a crop of any name has the fields of `CROP`."""
    group, _, field = name.rpartition(".")
    declared = field_in(GROUPS, name)
    return CROP.get(field) if declared is None and re.fullmatch(r"views\.crops\.[^.]+", group) else declared


def default() -> ConfigDict:
    """Returns the default config: DetailCLIP ViT-B/16 on YFCC15M (paper section 4.1, and the reference).

    It accepts no new fields, see `Fields`.
    """
    return built(GROUPS)


def crop(**changes: Any) -> ConfigDict:
    """Returns the fields of one crop: CLIP's (half to all of the image, no photometric augmentation), with `changes`.

    crop(count=2, flip=0.5).filter == "bilinear"
    """
    plain = {name: field.value for name, field in CROP.items()}
    per_view = {name: (0.0,) * changes.get("count", 1) for name in ("blur_p", "solarize_p")}
    return ConfigDict({**plain, **per_view, **changes})


def reference_preset(config: ConfigDict) -> ConfigDict:
    """Sets the fields in which the authors' published code differs from the paper; returns the changed config."""
    config.masking.granularity = "cell2x2"
    config.views.crops.large.scale = (0.14, 1.0)
    config.data.caption = "concat"
    config.data.keep_eot = False
    return config
