"""Calls of a model that are refused: the message names the mistake and the way out."""

import dataclasses

import numpy as np
import pytest
from test_inference import changed, made, make_images, model_of
from tiny import check_names

from detailclip_jax.data.decoding import BadImage
from detailclip_jax.inference import similar_patches
from detailclip_jax.inference.model import Square, choose_weights

IMAGES, TEXTS = make_images(2), ["a frog", "a bus"]
SQUARE = Square(IMAGES[0])
UNEVEN = np.arange(32).reshape(2, 4, 4) == 0  # a patch of the first image is removed, none of the second
ALONE = "embeds images only (encode_image, features, embed --images); use a checkpoint of a method with captions"


def encoder_alone():
    """An image encoder without projection and texts."""
    return dataclasses.replace(model_of(), params={"image": model_of().params["image"]})


REFUSED = {  # mistake: (error, call, words)
    "one image": (TypeError, lambda: model_of().features(IMAGES[0]), ["write [image]"]),
    "one square": (TypeError, lambda: model_of().features(SQUARE), ["takes a list of images, got one Square"]),
    "one text": (TypeError, lambda: model_of().dense(IMAGES[0], "a frog"), ["write ['a frog']"]),
    "classes by name": (
        TypeError,
        lambda: model_of().classify(IMAGES, {"cat": ["kitten"]}),
        ["classes is a list", "a dictionary"],
    ),
    "no template": (
        ValueError,
        lambda: model_of().classify(IMAGES, ["cat"], templates=[]),
        ["templates [] have no {}"],
    ),
    "places": (
        ValueError,
        lambda: similar_patches.similarity(np.ones((2, 4, 4, 8)), [(1, 1)]),
        ["1 places for 2 images"],
    ),
    "one class": (TypeError, lambda: model_of().classify(IMAGES, "cat"), ["classes is a list", "'cat'"]),
    "a class without a name": (
        ValueError,
        lambda: model_of().classify(IMAGES, ["cat", []]),
        ["classes [1] of 2 have no name"],
    ),
    "a template without a place": (
        ValueError,
        lambda: model_of().dense(IMAGES[0], TEXTS, templates=["a photo"]),
        ["templates ['a photo'] have no {}"],
    ),
    "a template of classes without a place": (
        ValueError,
        lambda: model_of().classify(IMAGES, ["cat"], ["a photo"]),
        ["a photo"],
    ),
    "an unknown read-out": (
        ValueError,
        lambda: model_of().dense(IMAGES[0], TEXTS, readout="naclp"),
        ["unknown read-out 'naclp'; did you mean 'naclip'"],
    ),
    "an unknown read-out of patches": (
        ValueError,
        lambda: model_of().patch_embeddings(IMAGES, "nacliip"),
        ["'naclip'"],
    ),
    "another vocabulary": (
        ValueError,
        lambda: changed(**{"model.vocab_size": 64}).encode_text(TEXTS),
        ["64 tokens", "encode_text", "49408"],
    ),
    "no text encoder": (
        ValueError,
        lambda: model_of("mae").encode_text(TEXTS),
        ["the method of runs/tiny is mae, which has no text and no text_projection", ALONE],
    ),
    "classes without a text encoder": (
        ValueError,
        lambda: model_of("mae").classify(IMAGES, ["cat"]),
        ["classify runs image"],
    ),
    "texts for an image encoder alone": (
        ValueError,
        lambda: encoder_alone().dense(IMAGES[0], TEXTS),
        ["dense runs image and image_projection and text"],
    ),
    "no joint space": (
        ValueError,
        lambda: model_of("mae").patch_embeddings(IMAGES),
        ["patch_embeddings runs image and image_projection"],
    ),
    "no decoder": (
        ValueError,
        lambda: model_of("clip").reconstruct(IMAGES, UNEVEN),
        ["is clip, which has no decoder and no pixel_head", "a pixel loss, such as mae"],
    ),
    "masks of different numbers": (
        ValueError,
        lambda: model_of().reconstruct(IMAGES, UNEVEN),
        ["removed has [0, 1] patches per image"],
    ),
    "a square of another size": (
        ValueError,
        lambda: model_of().features([Square(np.zeros((8, 8, 3), np.uint8))]),
        ["a square of uint8 [8, 8, 3], but runs/tiny sees uint8 [32, 32, 3]; make"],
    ),
    "a square of another type": (
        ValueError,
        lambda: model_of().attention(Square(np.zeros((32, 32, 3)))),
        ["a square of float64 [32, 32, 3]"],
    ),
    "a square for maps of the whole image": (
        TypeError,
        lambda: model_of().dense(SQUARE, TEXTS),
        ["dense cuts the whole image itself; give the image"],
    ),
    "a text that is none": (
        TypeError,
        lambda: model_of().encode_text(["a frog", None]),
        ["takes a list of texts, and None is none"],
    ),
    "an image without pixels": (
        BadImage,
        lambda: model_of().encode_image([np.zeros((0, 10, 3), np.uint8)]),
        ["empty: 10 x 0 pixels"],
    ),
    "a file that is no image": (BadImage, lambda: model_of().dense(b"no image", TEXTS), []),
    "the weights of no teacher": (
        ValueError,
        lambda: choose_weights(made("clip")[1], "ema"),
        ["weights=ema: this method has no teacher; use student"],
    ),
    "unknown weights": (
        ValueError,
        lambda: choose_weights(made("detailclip")[1], "teacher"),
        ["weights 'teacher' are unknown; known: ema, student"],
    ),
}


@pytest.mark.parametrize("mistake", REFUSED)
def test_a_wrong_call_says_the_way_out(mistake):
    error, call, words = REFUSED[mistake]
    with pytest.raises(error) as refused:
        call()
    check_names(refused.value, *words)
