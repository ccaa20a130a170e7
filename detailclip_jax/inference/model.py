"""A trained model with its preprocessing and tokenizer; inputs are batched into a few fixed shapes.

    import detailclip_jax

    model = detailclip_jax.load("runs/stickers")
    model.encode_image([Image.open("frog.jpg"), array]) @ model.encode_text(["a frog", "a bus"]).T    # cosines [2, 2]
    model.features([array]).patches                                                                  # [1, h, w, D]
    model.attention(array)                                                                           # eq. 9
    model.reconstruct([array], model.removed([array]))                    # the decoder's prediction of removed patches
    model.classify([array], ["frog", ["bus", "coach"]], ["a photo of a {}."])                        # cosines [1, 2]
    model.dense(array, ["a frog", "a bus"])                                      # a map of the image per text

The networks, their parameters and the config are `model.networks`, `model.variables` and `model.config`.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, overload

import jax
import numpy as np
from absl import logging
from jaxtyping import Bool, Float32, UInt8
from ml_collections import ConfigDict
from PIL import Image

from detailclip_jax import methods
from detailclip_jax.config import sizes
from detailclip_jax.data import preprocessing
from detailclip_jax.data.decoding import BUDGET, UPRIGHT, BadImage, decode, rgb_of
from detailclip_jax.data.native_aspect import Native
from detailclip_jax.data.preprocessing import NATIVE, Transform
from detailclip_jax.data.tokenizer import VOCAB_SIZE
from detailclip_jax.data.vocabularies import CLIP, digest_of, tokenizer_of
from detailclip_jax.inference import readout_choice
from detailclip_jax.inference.batching import in_shapes, in_turn
from detailclip_jax.inference.class_embeddings import class_embeddings, owners
from detailclip_jax.inference.inspection import (
    block_tokens,
    head_attention,
    lowest,
    paste,
    paste_options,
    pixel_predictor,
    removal_rule,
)
from detailclip_jax.inference.readout_maps import (
    PIPELINES,
    check_readout,
    default_readout,
    layout,
    mean_of_templates,
    prompts,
    readout_encoder,
)
from detailclip_jax.methods.encode import Encode, encoders
from detailclip_jax.models.networks import Networks
from detailclip_jax.models.text_encoder import TextStyle
from detailclip_jax.models.vit import Style
from detailclip_jax.runtime.files import read_bytes
from detailclip_jax.training import checkpoint, ema
from detailclip_jax.training.published_names import workdir_of
from detailclip_jax.training.workdirs import pick_step
from detailclip_jax.types import Params

NEEDS = {
    "encode_image": ("image",),
    "features": ("image",),
    "encode_text": ("text", "text_projection"),
    "attention": ("image",),
    "attention_heads": ("image",),
    "removed": ("image",),
    "reconstruct": ("image", "decoder", "pixel_head"),
    "patch_embeddings": ("image", "image_projection"),
    "classify": ("image", "image_projection", "text", "text_projection"),
    "dense": ("image", "image_projection", "text", "text_projection"),
}
OF_TRANSFER = {"detect": "detection", "segment": "segmentation"}  # method -> kind of the runs of transfer that have it
# Methods with a map of patches.
OF_SQUARES = ("features", "patch_embeddings", "attention", "attention_heads", "removed", "reconstruct")
SCORING_NETWORKS = ("image", "image_projection", "text", "text_projection", "caption_pool")  # the pool is FLAIR's


class Features(NamedTuple):
    """The features of B images, in float32, after the final norm of the image encoder.

    cls: [B, D], the feature of the image before any projection: the class token, or the mean over patches for a model
        with this pooling.
    patches: [B, h, w, D]; row 0 is at the top of the square that the model sees.
    """

    cls: Float32[np.ndarray, "B D"]
    patches: Float32[np.ndarray, "B h w D"]


@dataclasses.dataclass(frozen=True, eq=False)
class Square:
    """An image that is resized and cropped already, as `Model.view` does.

    Every method but `dense` takes it as it is; `dense` cuts the whole image itself and refuses it.

    square = Square(model.view("frog.png"))
    model.features([square]), model.attention(square)            # the image is read and resized once
    """

    pixels: np.ndarray  # uint8 [S, S, 3]


_warn_once = functools.cache(logging.warning)  # once for each text and its values


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A trained model, returned by `load`.

    An image is a PIL image of any mode, uint8 [H, W, 3] (or [H, W], [H, W, 1], [H, W, 4]), the path of a file, or the
    bytes of one; a `Square` is taken as it is. An image is rotated upright, converted to RGB (transparency over white),
    and resized, cropped and normalised according to `config.preprocess`, whose `decoding` "pillow" replaces the first
    two; its `resize` "native" keeps the whole image and its aspect. The default resizes the shorter side to the model's
    size with a bilinear filter and crops the central square;
    an imported model keeps its own evaluation preprocessing. `weights` names the `params` in use: "student", or "ema",
    where the teacher's networks replace those of the student. `best_readout` is the read-out of `dense` that `evaluate`
    found best for these weights, if it compared them.
    """

    networks: Networks
    variables: Mapping[str, Params]
    config: ConfigDict
    params: Params
    weights: str
    step: int
    path: str
    best_readout: str | None = None

    def __repr__(self) -> str:
        """Names the model, not its weights: <Model runs/stickers, step 600, student: detailclip tiny, 64 pixels>."""
        model = self.config.model
        what = f"{self.config.method} {model.size}, {model.image_size} pixels"
        return f"<Model {self.path}, step {self.step}, {self.weights}: {what}>"

    def encode_image(self, images: Any) -> Float32[np.ndarray, "B E"]:
        """L2-normalised embeddings of any number of images: a list, an iterator, or uint8 [B, H, W, 3].

        A model without a joint space of images and texts (timm, MAE, DINO, iBOT, AttMask, supervised) returns its class
        feature instead, L2-normalised, with E = D, and logs this once for each path.

        For FLAIR, which ranks by images pooled by each text, products with `encode_text` are the cosines of the class
        token, not the published score; `evaluate` has both.

        Raises BadImage that names the unreadable image, and TypeError for one image that is not in a list.
        """
        self.require("encode_image")
        if not self.has_joint_space:
            _warn_once("%s has no joint space: encode_image gives the L2-normalised class feature", self.path)
        return self._encoded(self.encode.image, self._views(images, "encode_image"), self.embedding_width)

    @overload
    def features(self, images: Any) -> Features: ...
    @overload
    def features(self, images: Any, layers: Sequence[int], normalise: bool = True) -> list[Features]: ...
    def features(
        self, images: Any, layers: Sequence[int] | None = None, normalise: bool = True
    ) -> Features | list[Features]:
        """Class feature [B, D] and patch features [B, h, w, D] of any number of images; input as for `encode_image`.

        Works for every model. Values are float32, after the image encoder's final norm, and not L2-normalised. B is the
        number of images, D the encoder's width; h and w are the numbers of patches along the height and width of the
        square that the model sees. If the final norm follows the mean over patches (pooling "norm_of_mean"), patch
        features are not normed, as in timm's forward_features.

            cls, patches = model.features(["frog.png"])     # ViT-B/16 at 224 px: [1, 768] and [1, 14, 14, 768]
            third, last = model.features(["frog.png"], layers=(3, -1))      # those after blocks 3 and 11

        `layers` are blocks, counted from 0, or from the end if negative; the result then is a list with the features
        after each of them, as timm's `forward_intermediates` gives them. `normalise` applies the encoder's final norm
        to them, but not that of "norm_of_mean". Their `cls` is the class token; for an encoder without one (SigLIP) the
        mean over the patches.

        Raises ValueError for a block that does not exist; else as `encode_image`.
        """
        self.require("features")
        side, width = sizes.num_side_patches(self.config.model), sizes.size_of(self.config.model).width
        if layers is not None:
            depth = sizes.size_of(self.config.model).depth
            if wrong := [layer for layer in layers if not -depth <= layer < depth]:
                raise ValueError(f"layers {wrong}: the encoder has {depth} blocks, 0 to {depth - 1}")
            first = self.networks.image.num_class_tokens
            function = self._block_tokens(tuple(layer % depth for layer in layers), normalise)
            empty = np.zeros((0, len(layers), first + side**2, width), np.float32)
            tokens = np.concatenate([empty, *self._called(function, self._views(images, "features"))])
            maps = tokens[:, :, first:].reshape(len(tokens), len(layers), side, side, width)
            cls = tokens[:, :, 0] if first else tokens.mean(2)
            return [Features(cls[:, number], maps[:, number]) for number in range(len(layers))]
        batches = self._called(self.encode.tokens, self._views(images, "features"))
        tokens = np.concatenate([np.zeros((0, 1 + side**2, width), np.float32), *batches])
        return Features(tokens[:, 0], tokens[:, 1:].reshape(-1, side, side, width))

    def patch_embeddings(self, images: Any, readout: str | None = None) -> Float32[np.ndarray, "B h w E"]:
        """Patch features in the joint space of images and texts, L2-normalised; input as for `encode_image`.

            patches = model.patch_embeddings(["park.jpg"])               # ViT-B/16 at 224 px: [1, 14, 14, 512]
            patches @ model.encode_text(["a dog", "grass"]).T            # cosines [1, 14, 14, 2]

        `readout` is one of `models.readouts.READOUTS`, see `dense`; by default that of `Model.readout`. The h x w
        patches are those of the square that the model sees; `dense` cuts the whole image into windows instead. Where
        texts are wider than patches (dino.txt), `inference.readout_maps.cosines` compares them.

        Raises ValueError for an unknown read-out, and if the method has no joint space; else as `encode_image`.
        """
        self.require("patch_embeddings")
        encoder = self._readout_encoder(readout or self.readout)
        batches = self._called(encoder, self._views(images, "patch_embeddings"))
        side = self.config.model.image_size
        shape = jax.eval_shape(encoder, self.params, np.zeros((1, side, side, 3), np.uint8)).shape[1:]
        return np.concatenate([np.zeros((0, *shape), np.float32), *batches])

    @property
    def has_joint_space(self) -> bool:
        """Whether image and text embeddings are comparable; False for an image encoder alone."""
        return "image_projection" in self.params

    @property
    def embedding_width(self) -> int:
        """E, the width of the embeddings of `encode_image`."""
        if self.has_joint_space:
            return self.params["text_projection"]["proj"]["kernel"].shape[-1]
        return sizes.size_of(self.config.model).width

    def encode_text(self, texts: Sequence[str]) -> Float32[np.ndarray, "B E"]:
        """L2-normalised embeddings of any number of texts; a text longer than the context is truncated.

        For a method whose score is not a cosine of embeddings (FLAIR), this is logged once for each path.

        Raises TypeError for one text that is not in a list, and ValueError if the method has no text encoder.
        """
        self.require("encode_text")
        if methods.build(self.config).score:
            way = "by a score of pairs, as in evaluate; cosines of embeddings rank otherwise"
            _warn_once("%s: %s ranks images and texts %s", self.path, self.config.method, way)
        tokenizer = tokenizer_of(self.config)
        tokens = tokenizer(texts)
        if tokenizer.num_truncated:
            length = tokenizer.context_length
            logging.warning("%d of %d texts were cut to %d tokens", tokenizer.num_truncated, len(tokens), length)
        return self._encoded(self.encode.text, tokens, self.embedding_width)

    def classify(
        self, images: Any, classes: Sequence[str | Sequence[str]], templates: Sequence[str] = ("{}",)
    ) -> Float32[np.ndarray, "B C"]:
        """Cosines of images with classes that are given by names, without any training (zero-shot).

            scores = model.classify(["park.jpg"], ["cat", ["dog", "puppy"]], templates=["a photo of a {}."])    # [1, 2]
            scores.argmax(1)                                                         # index of each image's best class

        A class is a name, or a list of names with the same meaning. Its prompts are all its names in all `templates`,
        whose "{}" stands for the name; its embedding is the mean of their L2-normalised embeddings, normalised again,
        as in `evaluate`. Images are those of `encode_image`. For FLAIR see `encode_image`.

        Raises TypeError for a dictionary, and for one name or template that is not in a list, ValueError for a class
        without a name, for a template without "{}", and if the method has no text encoder; else as `encode_image`.
        """
        self.require("classify")
        if isinstance(classes, str):
            raise TypeError(f"classes is a list, got the text {classes!r}; write [{classes!r}]")
        if isinstance(classes, Mapping):
            raise TypeError(
                "classes is a list, got a dictionary, of which only the keys would be read; write its values"
            )
        texts = [prompts([names] if isinstance(names, str) else names, templates) for names in classes]
        if empty := [number for number, each in enumerate(texts) if not each]:
            raise ValueError(f"classes {empty} of {len(texts)} have no name; give each at least one")
        embeddings = self.encode_text([prompt for each in texts for prompt in each])
        means = class_embeddings(embeddings, owners(texts), len(texts)).astype(np.float32)
        return self.encode_image(images) @ means.T

    def shares(self, cosines: Float32[np.ndarray, "*batch T"]) -> Float32[np.ndarray, "*batch T"]:
        """The probability of each of T texts for an image: softmax(s cosines), s the trained scale of the contrast.

            model.shares(model.encode_image(["park.jpg"]) @ model.encode_text(["a dog", "a cat"]).T)     # [1, 2]

        Without a trained scale s = 1 / 0.07, CLIP's initial value.
        """
        scale = self.params["logit_scale"]["value"] if "logit_scale" in self.params else np.log(1 / 0.07)
        logits = float(np.exp(np.ravel(scale)[0])) * cosines
        powers = np.exp(logits - logits.max(-1, keepdims=True))
        return powers / powers.sum(-1, keepdims=True)

    def attention(self, image: Any) -> Float32[np.ndarray, "side side"]:
        """The CLS attention of one image (eq. 9), averaged over heads and layers, per patch.

        The map covers the central square that the model sees; row 0 is at the top.
        """
        self.require("attention")
        (values,) = self._called(self.encode.attention, [self.view(image)])
        side = sizes.num_side_patches(self.config.model)
        return values.reshape(side, side)

    def attention_heads(self, images: Any) -> Float32[np.ndarray, "B L heads side side"]:
        """The CLS attention of any number of images by layer and head; input as for `encode_image`.

        Eq. 9, `attention`, is the mean over layers and heads. The softmax runs over all tokens, CLS included, so the
        values of a head sum to at most 1. An encoder with an attention pool (SigLIP) gives one layer: that of the pool.

            model.attention_heads(images)[:, -1].mean(1)        # the last layer, mean over its heads
        """
        self.require("attention_heads")
        size, side = sizes.size_of(self.config.model), sizes.num_side_patches(self.config.model)
        batches = self._called(self._head_attention, self._views(images, "attention_heads"))
        style = Style(**self.config.model.image_style)
        layers, heads = (1, style.pool_heads or size.num_heads) if style.has_pool else (size.depth, size.num_heads)
        empty = np.zeros((0, layers, heads, side**2), np.float32)
        return np.concatenate([empty, *batches]).reshape(-1, layers, heads, side, side)

    def removed(self, images: Any, ratio: float | None = None) -> Bool[np.ndarray, "B side side"]:
        """Which patches token removal (section 3.2.3) takes away: True for those of the lowest CLS attention (eq. 9).

        The share is `ratio`, by default `config.masking.ratio`; the unit is `config.masking.granularity`. Every image
        encoder has it, also that of a method that removes other patches in training, or none: then by default half of
        the single patches.

        Raises ValueError for a ratio that removes no patch or all.
        """
        self.require("removed")
        rule = removal_rule(self.config)
        rule = rule if ratio is None else rule._replace(ratio=ratio).checked()
        batches = self._called(self.encode.attention, self._views(images, "removed"))
        attention = np.concatenate([np.zeros((0, rule.num_patches), np.float32), *batches])
        return np.asarray(lowest(attention, rule)).reshape(-1, rule.side, rule.side)

    def reconstruct(self, images: Any, removed: Bool[np.ndarray, "B side side"]) -> UInt8[np.ndarray, "B S S 3"]:
        """The images with their removed patches replaced by the decoder's predictions from the other patches.

            model.reconstruct(images, model.removed(images))

        `removed` is True at the same number of patches in every image. The student's networks compute it, whatever
        `weights` says, since the decoder is trained with them. Brightness and contrast of a patch are those of the true
        patch if the method normalises its targets per patch (see `inspection.paste`).

        Raises ValueError if the method has no decoder, or if the number of removed patches differs between images.
        """
        self.require("reconstruct")
        views = np.stack(list(self._views(images, "reconstruct")))
        mask = removed.reshape(len(views), -1)
        counts = sorted(set(mask.sum(1).tolist()))
        if len(counts) != 1 or not 0 < counts[0] < mask.shape[1]:
            raise ValueError(f"removed has {counts} patches per image; it must be one number from 1 to all but one")
        params, options, drawn = self.variables["params"], paste_options(self.config), []
        for (batch, count), (hidden, _) in zip(in_shapes(views), in_shapes(mask)):
            predicted = np.asarray(self._pixel_predictor(params, batch, hidden, counts[0]))
            rows = zip(batch[:count], predicted, hidden)  # without the padding of the batch
            drawn += [paste(image, values, np.flatnonzero(patches), **options) for image, values, patches in rows]
        return np.stack(drawn)

    @functools.cached_property
    def _head_attention(self) -> jax.stages.Wrapped:
        return head_attention(self.networks, self.config)

    @functools.cached_property
    def _block_tokens(self) -> Callable[[tuple[int, ...], bool], jax.stages.Wrapped]:
        return functools.cache(lambda blocks, norm: block_tokens(self.networks, self.config, blocks, norm))

    @functools.cached_property
    def _pixel_predictor(self) -> jax.stages.Wrapped:
        return pixel_predictor(self.networks, self.config)

    def dense(
        self,
        image: Any,
        texts: Sequence[str],
        readout: str | None = None,
        templates: Sequence[str] = ("{}",),
        size: tuple[int, int] | None = None,
    ) -> Float32[np.ndarray, "T H W"]:
        """A map of one image per text: how similar each place is to the text, without any training.

            maps = model.dense("park.jpg", ["a dog", "grass", "sky"])      # [3, H, W]
            maps.argmax(0)                                                 # index of the best text at each pixel

        H x W is `size`, by default that of the upright image; the maps cover all of it. Values are cosines, -1 to 1, of
        the text's embedding with patch features, resized bilinearly to pixels. Only differences between texts carry
        meaning: published pipelines take softmax(scale * maps, axis=0), with the scale of
        `inference.readout_maps.PIPELINES[readout]`. TIPS's takes the softmax in each window instead, before the mean
        over windows; an evaluation of `tips` does so.

        `readout` is one of `models.readouts.READOUTS`: plain, maskclip, maskclip_bare, sclip, naclip, clearclip, gem,
        tips; by default that of `Model.readout`. Each resizes and cuts the image as its published code
        does, see `inference.readout_maps.Pipeline`; `config.preprocess` contributes mean and standard deviation alone.
        With several `templates`, a text's embedding is the mean over them.

        Raises ValueError for an unknown read-out, for a template without "{}", and if the method has no text encoder;
        BadImage for an unreadable image; TypeError for one text that is not in a list.
        """
        self.require("dense")
        readout = readout or self.readout
        check_readout(readout)
        wanted = mean_of_templates(self.encode_text(prompts(texts, templates)), len(templates))
        with BUDGET.scope():
            array = pixels(image, self.transform.decoding)
            cut = layout(array.shape, PIPELINES[readout], self.config.model, size)
            features = np.concatenate(self._called(self._readout_encoder(readout), cut.windows(array)))
        return cut.maps(features, wanted)

    @property
    def readout(self) -> str:
        """The read-out of `dense` where none is named: `best_readout`, else naclip, of a model of dinotxt plain."""
        return self.best_readout or default_readout(self.config)

    @functools.cached_property
    def _readout_encoder(self) -> Callable[[str], jax.stages.Wrapped]:
        return functools.cache(lambda readout: readout_encoder(self.networks, self.config, readout))

    def view(self, image: Any) -> UInt8[np.ndarray, "S S 3"] | Native:
        """One image, resized and cropped for the networks; its values are not normalised.

        Raises ValueError for a `Square` of another size than the model's, or of another type than uint8.
        """
        if isinstance(image, Square):
            size, square = self.config.model.image_size, image.pixels
            if square.shape != (size, size, 3) or square.dtype != np.uint8:
                raise ValueError(
                    f"a square of {square.dtype} {list(square.shape)}, but {self.path} sees uint8 [{size}, {size}, 3]; "
                    "make it with Square(model.view(image))"
                )
            return square
        with BUDGET.scope():
            return self.transform.view(pixels(image, self.transform.decoding))

    @functools.cached_property
    def transform(self) -> Transform:
        """The decoding and geometric preprocessing of images, from `config.preprocess`."""
        return preprocessing.transform_of(self.config)

    def preprocessed(self, fields: Mapping[str, Any]) -> "Model":
        """The same model with some fields of `config.preprocess` replaced; None leaves a field unchanged.

        Raises ValueError as `preprocessing.changed` does, and for a field that the kind of resize does not use.
        """
        config = preprocessing.changed(self.config, fields)
        preprocessing.check_used(config.preprocess, fields)
        return dataclasses.replace(self, config=config)

    def on_squares(self) -> "Model":
        """The same model; if it sees images in their own aspect, one that squashes them to squares."""
        config = preprocessing.on_squares(self.config)
        return self if config is self.config else dataclasses.replace(self, config=config)

    @functools.cached_property
    def encode(self) -> Encode:
        """The compiled functions of (params, array), for arrays of any shape."""
        return encoders(self.networks, self.config)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits of a hash of what embeddings and scores depend on: weights and preprocessing."""
        used = [name for name in SCORING_NETWORKS if name in self.params]
        digest = hashlib.sha256(repr(_reading(self.config)).encode())
        for path, leaf in jax.tree.leaves_with_path({name: self.params[name] for name in used}):
            digest.update(jax.tree_util.keystr(path).encode())
            digest.update(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data)
        return digest.hexdigest()[:12]

    def __getattr__(self, name: str) -> NoReturn:
        """Raises AttributeError; for a method of a run of `transfer` it says which kind of run has it."""
        if name in OF_TRANSFER:
            raise AttributeError(
                f"{self.path} is a model of the method {self.config.method}, which has features and attention; "
                f"{name} needs a run of {OF_TRANSFER[name]} (python -m detailclip_jax.transfer)",
                name=name,
                obj=self,
            )
        object.__getattribute__(self, name)  # the usual error, or that of a property
        raise AttributeError(name)

    def require(self, call: str) -> None:
        """Raises ValueError unless the model has the networks that the method `call` runs."""
        if missing := [name for name in NEEDS[call] if name not in self.params]:
            alone = "; it embeds images only (encode_image, features, embed --images)" * ("image" in self.params)
            wanted = "captions, such as clip or detailclip"
            if call == "reconstruct":
                alone, wanted = "", "a pixel loss, such as mae or detailclip"
            raise ValueError(
                f"{call} runs {' and '.join(NEEDS[call])}, but the method of {self.path} is {self.config.method}, "
                f"which has no {' and no '.join(missing)}{alone}; use a checkpoint of a method with {wanted}"
            )
        if call in OF_SQUARES and self.transform.resize == NATIVE:
            raise ValueError(
                f"{call} needs a square, but {self.path} sees images in their own aspect (preprocess.resize 'native'); "
                "give preprocess={'resize': 'squash'} to load(), or --resize=squash"
            )
        clip = self.config.data.tokenizer == CLIP
        if call in ("encode_text", "dense") and clip and self.config.model.vocab_size != VOCAB_SIZE:
            raise ValueError(
                f"{self.path} was trained on a vocabulary of {self.config.model.vocab_size} tokens; {call} reads "
                f"CLIP's of {VOCAB_SIZE}; import it with --tokenizer=FILE, the file of its own tokenizer"
            )

    def _views(self, images: Any, call: str) -> Iterator[UInt8[np.ndarray, "S S 3"] | Native]:
        if isinstance(images, str | bytes | Path | Image.Image | Square) or getattr(images, "ndim", 4) < 4:
            raise TypeError(f"{call} takes a list of images, got one {type(images).__name__}; write [image]")
        for number, image in enumerate(images):
            try:
                yield self.view(image)
            except BadImage as error:
                name = f", {image}" if isinstance(image, str | Path) else ""
                raise BadImage(f"image {number}{name}: {error}") from error

    def _encoded(self, function: Any, rows: Iterable[Any], width: int) -> Float32[np.ndarray, "B E"]:
        batches = self._called(function, rows)
        return np.concatenate([np.zeros((0, width), np.float32), *batches])

    def _called(self, function: Any, rows: Iterable[Any]) -> list[np.ndarray]:
        """Applies a compiled function to the rows, in batches of a few shapes."""
        calls = ((function(self.params, batch), count) for batch, count in in_shapes(rows))
        return [np.asarray(values)[:count].astype(np.float32) for values, count in in_turn(calls)]


def load(
    path: str | Path,
    weights: str | None = None,
    step: int | None = None,
    preprocess: Mapping[str, Any] | None = None,
) -> Model:
    """Loads the model of a workdir written by `main` or `import_torch`, on one device.

        model = detailclip_jax.load("runs/stickers")

    `weights` is "ema", the teacher's, or "student"; the default is that of the method (`Method.weights`), and the
    student's for a method without a teacher. `step` defaults to the newest checkpoint. `preprocess` overrides fields of
    this group of the config, such as {"filter": "bicubic"}. To load only networks, variables and config, use
    `checkpoint.load`.

    Raises FileNotFoundError for a folder without checkpoints, ValueError for missing weights or a damaged file of
    read-outs, and CheckpointError for an unreadable checkpoint.
    """
    path = workdir_of(path)
    step = pick_step(path, step)
    networks, variables, config = checkpoint.load(path, step)
    which, params = choose_weights(variables, weights, methods.build(config).weights)
    choice = readout_choice.read(path, step, which)
    model = Model(networks, variables, config, params, which, step, str(path), choice and choice.readout)
    return model.preprocessed(preprocess or {})


def choose_weights(variables: Mapping[str, Params], which: str | None, usual: str = "ema") -> tuple[str, Params]:
    """Name and parameters of the student, or of the student with the teacher's networks.

    Without `which` they are `usual`, but the student's if there is no teacher. Raises ValueError for "ema" without a
    teacher, and for an unknown name.
    """
    teacher = variables["ema_params"]
    if which not in (None, "ema", "student"):
        raise ValueError(f"weights {which!r} are unknown; known: ema, student")
    if which == "ema" and not teacher:
        raise ValueError("weights=ema: this method has no teacher; use student")
    if (which or usual) == "student" or not teacher:
        return "student", variables["params"]
    return "ema", ema.overlay(variables["params"], teacher)


def pixels(image: Any, decoding: str = UPRIGHT) -> UInt8[np.ndarray, "H W 3"]:
    """An image (see `Model`) as RGB.

    Raises BadImage for an unreadable image, FileNotFoundError, and TypeError for other types.
    """
    if isinstance(image, str | Path):
        return decode(read_bytes(Path(image).expanduser()), decoding=decoding)
    if isinstance(image, bytes):
        return decode(image, decoding=decoding)
    if isinstance(image, Square):
        raise TypeError("dense cuts the whole image itself; give the image instead of a Square")
    if isinstance(image, list | tuple):
        raise TypeError(f"expected one image, got a {type(image).__name__} of {len(image)}; write image, not [image]")
    if not isinstance(image, Image.Image):
        array = np.asarray(image)
        channels = array.shape[2] if array.ndim == 3 else 1
        if array.dtype != np.uint8 or array.ndim not in (2, 3) or channels not in (1, 3, 4):  # it would look wrong
            raise TypeError(
                f"{array.dtype} {list(array.shape)} is not an image; give a PIL image, a path, or uint8 [height, "
                "width, 3] with values from 0 to 255"
            )
        image = Image.fromarray(array[:, :, 0] if array.ndim == 3 and channels == 1 else array)
    if not all(image.size):
        raise BadImage(f"empty: {image.width} x {image.height} pixels")
    try:
        return rgb_of(image, decoding)
    except BadImage:
        raise
    except Exception as error:  # on damaged bytes, Pillow's decoders can raise any exception
        raise BadImage(f"truncated or damaged: {error}") from error


def _reading(config: ConfigDict) -> list[Any]:
    """The fields of the config on which preprocessing and encoding depend."""
    model, fields, size = config.model, config.preprocess, sizes.size_of(config.model)
    heads = size.num_heads, size.text_heads
    # position_std is of fresh parameters; init is, too, but it is part of the fingerprints of earlier commits
    style = sorted((name, value) for name, value in model.image_style.items() if name != "position_std")
    kinds = model.image_size, model.context_length, model.text_activation, model.dtype
    geometry = fields.filter, fields.resize, fields.crop_ratio, fields.decoding, tuple(fields.mean), tuple(fields.std)
    geometry += preprocessing.transform_of(config)[-2:] if fields.resize == NATIVE else ()
    tokenizer = config.data.tokenizer
    if tokenizer != CLIP:  # without the file there are no embeddings of texts, and those of images do not depend on it
        tokenizer = config.data.tokenizer_digest or (digest_of(tokenizer) if Path(tokenizer).is_file() else "")
    return [heads, style, *kinds, *geometry, model.matmul_precision, TextStyle(**model.text_style), tokenizer]
