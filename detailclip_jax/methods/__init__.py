"""The methods, one file each: a function from a config to a `Method`.

| method | teacher sees | hidden patches | student sees | losses |
|---|---|---|---|---|
| clip, siglip, flair | - | - | all patches | clip, sigmoid, flair |
| dinotxt | - | - | all patches, then two new blocks | clip |
| superclip, beta | - | - | all patches | clip, token_set or beta |
| cosmos | all patches, captions | - | all patches, local crops | clip, cross |
| slip | - | - | clean view, two views | clip, simclr |
| maskclip | all patches | random .75, dropped | all patches, the kept ones | clip, patch |
| aclip | enclosing view | lowest attention, at the student's box, dropped | the kept patches | clip, simclr, byol |
| detailclip | all patches | lowest attention, dropped | the kept patches | clip, cls, patch, reconstruction |
| mae | - | random .75, dropped | the kept patches | reconstruction |
| dino | all patches | - | all patches, local crops | cls |
| ibot, attmask | all patches | blocks, highest attention; replaced | with mask tokens, local crops | cls, patch |
| silc | all patches | - | whole image, two views, local crops | clip, cls |
| tips, tipsv2 | all patches | random .75, replaced | all patches, with mask tokens, local crops | clip, cls, patch |
| siglip2 | all patches | random .5, replaced | whole image, with mask tokens, local crops | sigmoid, cls, patch |
| supervised | - | - | all patches | labels |

By option the teacher of detailclip sees an enclosing view too. The teacher of tipsv2 is the student's encoder, and its
patch loss is over all patches. An enclosing view is a larger crop around the student's. A clean view and the whole
image (squashed) serve the loss with the caption alone. Hidden patches are dropped, or replaced by a trained mask token.
"""

import dataclasses
from collections.abc import Container, Iterable

from ml_collections import ConfigDict

from detailclip_jax.config import sizes
from detailclip_jax.config.settings import split_list
from detailclip_jax.methods.aclip import aclip
from detailclip_jax.methods.beta import beta, sentence_contrast
from detailclip_jax.methods.clip import clip
from detailclip_jax.methods.cosmos import cosmos
from detailclip_jax.methods.detailclip import detailclip
from detailclip_jax.methods.dino import dino
from detailclip_jax.methods.dinotxt import dinotxt
from detailclip_jax.methods.distill import adopt_teacher, distill, load_teacher, stand_in
from detailclip_jax.methods.flair import flair
from detailclip_jax.methods.gram import gram
from detailclip_jax.methods.ibot import attmask, ibot
from detailclip_jax.methods.image_encoder import image_encoder
from detailclip_jax.methods.intra_modal import intra_modal
from detailclip_jax.methods.mae import mae
from detailclip_jax.methods.maskclip import maskclip
from detailclip_jax.methods.method import Method, Term
from detailclip_jax.methods.method import build as build_method
from detailclip_jax.methods.negatives import FALSE, negatives
from detailclip_jax.methods.patch_dropout import patch_dropout
from detailclip_jax.methods.rank import rank
from detailclip_jax.methods.region import region
from detailclip_jax.methods.region_text import PHRASES, region_text
from detailclip_jax.methods.siglip import siglip
from detailclip_jax.methods.siglip2 import siglip2
from detailclip_jax.methods.silc import silc
from detailclip_jax.methods.slip import slip
from detailclip_jax.methods.superclip import superclip
from detailclip_jax.methods.supervised import supervised
from detailclip_jax.methods.text_contrast import text_contrast
from detailclip_jax.methods.tips import tips
from detailclip_jax.methods.tipsv2 import tipsv2
from detailclip_jax.methods.token_set import token_set
from detailclip_jax.models import networks
from detailclip_jax.models.networks import Networks
from detailclip_jax.runtime.errors import unknown
from detailclip_jax.types import Axis

METHODS = {
    "clip": clip,
    "slip": slip,
    "maskclip": maskclip,
    "aclip": aclip,
    "detailclip": detailclip,
    "mae": mae,
    "dino": dino,
    "ibot": ibot,
    "attmask": attmask,
    "supervised": supervised,
    "siglip": siglip,
    "silc": silc,
    "tips": tips,
    "tipsv2": tipsv2,
    "siglip2": siglip2,
    "cosmos": cosmos,
    "flair": flair,
    "superclip": superclip,
    "beta": beta,
    "dinotxt": dinotxt,
}
TERMS = {  # terms that a method gets if their weight is not 0
    "token_set": Term(token_set),
    "beta": Term(sentence_contrast),
    "gram": Term(gram),
    "region": Term(region),
    "negatives": Term(negatives, native=True),
    "region_text": Term(region_text),
    "text_contrast": Term(text_contrast, native=True),
    "rank": Term(rank, native=True),
    "intra_modal": Term(intra_modal, native=True),
    "distill": Term(distill, adopt_teacher, load_teacher, stand_in),
}
ENCODERS = {"image_encoder": image_encoder}  # further methods of imported checkpoints; not trainable


def build(config: ConfigDict) -> Method:
    """Builds the method `config.method`, without loss terms of weight 0 and the heads that only they need.

    Raises ValueError for an unknown method, and if `config.views.crops` lacks a crop that the method uses or has
    too few or too many views, or if the decoder has another width than the method needs.
    """
    if config.method not in ENCODERS:
        check_name(config.method)
    _check_crops({"large"}, config)
    method = (METHODS | ENCODERS)[config.method](config)
    if config.views.patch_dropout:
        method = patch_dropout(method, config)
    for name, term in TERMS.items():
        if config.losses.weights.get(name, 0) and method.losses:
            method = term.add(method, config)
    if config.views.native:
        _check_native(method, config)
    _check_crops(method.crops, config)
    built = build_method(method, config.losses.weights.to_dict())
    frozen = split_list(config.optimizer.frozen)  # the teacher's network is the student's, which does not change
    built = dataclasses.replace(built, ema=tuple(name for name in built.ema if name not in frozen))
    _check_count(built, config)
    _check_decoder(built, config)
    return built


def _check_native(method: Method, config: ConfigDict) -> None:
    """Raises ValueError for a method or a term that needs squares of patches."""
    views, field = config.views, f"views.native {config.views.native}"
    weights = config.losses.weights
    terms = [f"losses.weights.{name}" for name, term in TERMS.items() if weights.get(name, 0) and not term.native]
    if not method.native:
        raise ValueError(f"{field}: method {method.name} needs squares; leave it out, or train clip or siglip")
    if needy := [*terms, *(["views.patch_dropout"] if views.patch_dropout else [])]:
        raise ValueError(f"{field}: {needy[0]} needs squares; leave one of the two out")


class UnknownMethod(ValueError):
    """A method that no imported module has added to METHODS."""


def check_name(name: str) -> None:
    """Raises UnknownMethod with the nearest and all known names unless METHODS has a method of this name."""
    if name not in METHODS:
        raise UnknownMethod(unknown("method", name, METHODS))


def check_weights(config: ConfigDict, before: ConfigDict, given: Container[str] = ()) -> None:
    """Raises ValueError for a loss weight or ramp that the method ignores, if it differs from that of `before`.

    Also for one of the `given` dotted names, which the user has set to any value.
    """
    read = {loss.weight_name: loss for loss in METHODS[config.method](config).losses}
    for group in ("weights", "ramps"):
        for name, value in config.losses[group].items():
            is_new = value != before.losses[group].get(name) or f"losses.{group}.{name}" in given
            if is_new and name not in read and name not in TERMS:
                raise ValueError(
                    f"losses.{group}.{name} {value}: method {config.method} has no such term; its weights are "
                    f"{', '.join(read)}, and those of terms that can be added: {', '.join(TERMS)}"
                )


def build_networks(config: ConfigDict, axis: Axis | None = None, platform: str | None = None) -> Networks:
    """Builds the networks of the config's method; `axis` and `platform` are those of `networks.build`."""
    return networks.build(config.model, build(config).networks, axis, platform)


def unread_texts(method: Method, config: ConfigDict) -> list[str]:
    """Returns which of the fields `data.negatives` and `data.regions` are set and no head of the method reads."""
    made = {name for head in method.heads for name in head.makes}
    readers = {"negatives": {*FALSE, *PHRASES}, "regions": {*PHRASES}}
    return [name for name, heads in readers.items() if config.data[name] and made.isdisjoint(heads)]


def takes_decoder(method: Method, model: ConfigDict) -> bool:
    """Whether the method can use a decoder of the width in `model`, see `Method.has_prototypes_of_decoded`."""
    width = sizes.size_of(model).width
    return (model.decoder_width or width) == width or not method.has_prototypes_of_decoded


def _check_crops(wanted: Iterable[str], config: ConfigDict) -> None:
    crops = config.views.crops
    if missing := sorted(set(wanted) - set(crops)):
        raise ValueError(
            f"method {config.method} needs the crop {missing[0]!r}, but views.crops has only {', '.join(crops)}; "
            f"configs/stickers.py:method={config.method} and the method's own config, {config.method}.py, have it"
        )


def _check_count(method: Method, config: ConfigDict) -> None:
    """Checks the number of large crops: losses between two views need two, and SimCLR takes no more than two."""
    count = config.views.crops.large.count
    if count > 2 and "simclr" in method.terms:
        raise ValueError(
            f"method {method.name} compares two views, but views.crops.large.count is {count}; set it to 2"
        )
    if count < 2 and ("simclr" in method.terms or ("cls" in method.terms and "local" not in method.passes)):
        raise ValueError(
            f"method {method.name} compares two views of each image, but views.crops.large.count is 1; set it to 2, "
            "with two numbers in blur_p and solarize_p"
        )


def _check_decoder(method: Method, config: ConfigDict) -> None:
    """Checks the decoder's width, if one prototype head takes tokens of encoder and decoder."""
    if not takes_decoder(method, config.model):
        raise ValueError(
            f"model.decoder_width {config.model.decoder_width} must be {sizes.size_of(config.model).width}, the "
            f"encoder's width: the prototype head of method {method.name} takes tokens of both; leave the field out, "
            "or set losses.weights.patch to 0"
        )
