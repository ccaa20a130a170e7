"""A trained model with everything around it: preprocessing, tokens, batches of a few fixed shapes.

    import detailclip_jax

    model = detailclip_jax.load("runs/stickers")
    model.encode_image([Image.open("frog.jpg"), array]) @ model.encode_text(["a frog", "a bus"]).T    # cosines [2, 2]
    model.features([array]).patches                                                                  # [1, h, w, D]
    model.attention(array)                                                                           # eq. 9

The networks, their parameters and the config are there as well: `model.networks`, `model.variables`, `model.config`.
"""

import dataclasses
import functools
import hashlib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging
from jaxtyping import Float32, UInt8
from ml_collections import ConfigDict
from PIL import Image

from detailclip_jax.data import preprocessing
from detailclip_jax.data.decoding import BUDGET, BadImage, decode, upright_rgb
from detailclip_jax.data.images import evaluation_view
from detailclip_jax.data.preprocessing import Transform
from detailclip_jax.data.regular_files import read_regular
from detailclip_jax.data.tokenizer import VOCAB_SIZE, Tokenizer
from detailclip_jax.methods.encode import Encode, encoders
from detailclip_jax.models import sizes
from detailclip_jax.models.towers import Networks
from detailclip_jax.training import checkpoint, ema
from detailclip_jax.types import Params

SHAPES = (1, 8, 64)  # rows of one call; each is compiled once, when it is first needed
AHEAD = 2  # calls that may be unfinished while the next rows are made
NEEDS = {
    "encode_image": ("image",),
    "features": ("image",),
    "encode_text": ("text", "text_projection"),
    "attention": ("image",),
}
USUAL_GEOMETRY = ("bilinear", "shorter_side", 1.0)
EMBEDDING_PARTS = ("image", "image_projection", "text", "text_projection")
WITH_TEXT = ("clip", "slip", "maskclip", "aclip", "detailclip")


class Features(NamedTuple):
    """What `Model.features` gives of B pictures, in float32, after the encoder's final norm.

    cls: [B, D], what stands for the picture before any projection: the class token, or the mean over patches for a
        model that pools so.
    patches: [B, h, w, D], row 0 at the top of the square that the model sees.
    """

    cls: Float32[np.ndarray, "B D"]
    patches: Float32[np.ndarray, "B h w D"]


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """What `load` returns.

    A picture is a PIL image of any mode, uint8 [H, W, 3] (or [H, W], [H, W, 1], [H, W, 4]), the path of a file, or the
    bytes of one.  It is turned upright, becomes RGB (transparency over white), and is resized, cropped and normalised
    as `config.preprocess` says.  The default resizes the shorter side to the model's size, with a bilinear filter, and
    cuts out the middle square; an imported model keeps the rule of its own evaluation.  `weights` says which of
    `variables` are `params`: "student", or "ema" with the teacher's parts laid over.
    """

    networks: Networks
    variables: Mapping[str, Params]
    config: ConfigDict
    params: Params
    weights: str
    step: int
    path: str

    def encode_image(self, images: Any) -> Float32[np.ndarray, "B E"]:
        """L2-normalised embeddings of any number of pictures: a list, an iterator, or uint8 [B, H, W, 3].

        A model without a joint space of pictures and texts (timm, MAE, DINO, iBOT, AttMask, supervised) gives its
        class feature instead, L2-normalised, E = D, and logs that once.

        Raises BadImage that says which one cannot be read, and TypeError for one picture that is not in a list.
        """
        self.require("encode_image")
        if not self.has_joint_space:
            self._say_once  # noqa: B018  # a property, so that it is said once a model
        return self._encoded(self.encode.image, self._views(images, "encode_image"), self.embedding_width)

    def features(self, images: Any) -> Features:
        """Class feature [B, D] and patch features [B, h, w, D] of any number of pictures, given as to `encode_image`.

        Float32, after the image encoder's final norm, of every model; B, D, h and w are the number of pictures, the
        encoder's width, and the patches along the height and width of the square that it sees.  They are not
        L2-normalised.  Where the final norm stands behind the mean over patches (pooling "norm_of_mean"), the patches
        have none, as in timm's forward_features.

            cls, patches = model.features(["frog.png"])     # ViT-B/16 at 224 px: [1, 768] and [1, 14, 14, 768]
        """
        self.require("features")
        side, width = sizes.num_side_patches(self.config.model), sizes.size_of(self.config.model).width
        parts = self._called(self.encode.tokens, self._views(images, "features"))
        tokens = np.concatenate([np.zeros((0, 1 + side**2, width), np.float32), *parts])
        return Features(tokens[:, 0], tokens[:, 1:].reshape(-1, side, side, width))

    @property
    def has_joint_space(self) -> bool:
        """Whether pictures and texts have embeddings that compare; else there is an image encoder alone."""
        return "image_projection" in self.params

    @property
    def embedding_width(self) -> int:
        """E of `encode_image`."""
        size = sizes.size_of(self.config.model)
        return size.joint_width if self.has_joint_space else size.width

    @functools.cached_property
    def _say_once(self) -> None:
        logging.warning("%s has no joint space: encode_image gives the L2-normalised class feature", self.path)

    def encode_text(self, texts: Sequence[str]) -> Float32[np.ndarray, "B E"]:
        """L2-normalised embeddings of any number of texts; one that is longer than the context loses its end.

        Raises TypeError for one text that is not in a list, and ValueError where the method has no text tower.
        """
        self.require("encode_text")
        tokenizer = Tokenizer(self.config.model.context_length)
        tokens = tokenizer(texts)
        if tokenizer.num_truncated:
            length = tokenizer.context_length
            logging.warning("%d of %d texts are cut to %d tokens", tokenizer.num_truncated, len(texts), length)
        return self._encoded(self.encode.text, tokens, self.embedding_width)

    def attention(self, image: Any) -> Float32[np.ndarray, "side side"]:
        """Eq. 9 of one picture: where its CLS token looks, the mean over heads and layers, by patch.

        The map covers the middle square that the model sees, row 0 at the top.
        """
        self.require("attention")
        (values,) = self._called(self.encode.attention, [self.view(image)])
        side = sizes.num_side_patches(self.config.model)
        return values.reshape(side, side)

    def view(self, image: Any) -> UInt8[np.ndarray, "S S 3"]:
        """One picture as the networks get it, before the normalisation of its values."""
        with BUDGET.scope():
            return evaluation_view(pixels(image), *self.transform)

    @functools.cached_property
    def transform(self) -> Transform:
        """How a picture becomes one of the model's size, as `config.preprocess` says."""
        return preprocessing.transform_of(self.config)

    def preprocessed(self, fields: Mapping[str, Any]) -> "Model":
        """The same model with other fields of `config.preprocess`, those that are not None; ValueError as `changed`."""
        return dataclasses.replace(self, config=preprocessing.changed(self.config, fields))

    @functools.cached_property
    def encode(self) -> Encode:
        """The compiled functions themselves, of parameters and arrays of any one shape."""
        return encoders(self.networks, self.config)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits of what embeddings depend on: the weights and how pictures and texts are read."""
        parts = [part for part in EMBEDDING_PARTS if part in self.params]
        digest = hashlib.sha256(repr(_reading(self.config)).encode())
        for path, leaf in jax.tree.leaves_with_path({part: self.params[part] for part in parts}):
            digest.update(jax.tree_util.keystr(path).encode())
            digest.update(np.ascontiguousarray(leaf).data)
        return digest.hexdigest()[:12]

    def require(self, call: str) -> None:
        """ValueError unless the model has the parts that the method of that name runs."""
        if missing := [part for part in NEEDS[call] if part not in self.params]:
            alone = "; it embeds pictures alone (encode_image, features, embed --images)" * ("image" in self.params)
            raise ValueError(
                f"{call} runs {' and '.join(NEEDS[call])}, but {self.path} is a {self.config.method}, which has no "
                f"{' and no '.join(missing)}{alone}; methods that have all: {', '.join(WITH_TEXT)}"
            )
        if call == "encode_text" and self.config.model.vocab_size != VOCAB_SIZE:
            raise ValueError(
                f"{self.path} was trained on a vocabulary of {self.config.model.vocab_size} tokens; encode_text reads "
                f"CLIP's of {VOCAB_SIZE}"
            )

    def _views(self, images: Any, call: str) -> Iterator[UInt8[np.ndarray, "S S 3"]]:
        if isinstance(images, str | bytes | Path | Image.Image) or getattr(images, "ndim", 4) < 4:
            raise TypeError(f"{call} takes a list of pictures, got one {type(images).__name__}; write [image]")
        for number, image in enumerate(images):
            try:
                yield self.view(image)
            except BadImage as error:
                raise BadImage(f"picture {number}: {error}") from error

    def _encoded(self, function: Any, rows: Iterable[np.ndarray], width: int) -> Float32[np.ndarray, "B E"]:
        parts = self._called(function, rows)
        return np.concatenate([np.zeros((0, width), np.float32), *parts])

    def _called(self, function: Any, rows: Iterable[np.ndarray]) -> list[np.ndarray]:
        """What a compiled function makes of the rows, whose number is filled up to one of SHAPES."""
        calls = ((function(self.params, filled(chunk)), len(chunk)) for chunk in chunks(rows, SHAPES[-1]))
        return [made[:count].astype(np.float32) for made, count in in_turn(calls)]


def load(
    path: str | Path,
    weights: str | None = None,
    step: int | None = None,
    preprocess: Mapping[str, Any] | None = None,
) -> Model:
    """The model of a workdir that `main` or `import_torch` wrote, on one device, ready to be asked.

        model = detailclip_jax.load("runs/stickers")

    `weights` are "ema" (default where the method has a teacher) or "student"; without `step` the newest checkpoint is
    read.  `preprocess` overrides fields of that group of the config, such as {"filter": "bicubic"}.  `checkpoint.load`
    gives networks, variables and config alone.
    Raises FileNotFoundError for a folder without checkpoints, ValueError for weights that there are not, and
    CheckpointError for a checkpoint that cannot be read.
    """
    step = checkpoint.pick_step(path, step)
    networks, variables, config = checkpoint.load(path, step)
    which, params = choose_weights(variables, weights)
    return Model(networks, variables, config, params, which, step, str(path)).preprocessed(preprocess or {})


def choose_weights(variables: Mapping[str, Params], which: str | None) -> tuple[str, Params]:
    """Name and parameters of the student, or of the teacher laid over it, the default where there is one.

    Raises ValueError for "ema" without a teacher, and for another name.
    """
    teacher = variables["ema_params"]
    if which not in (None, "ema", "student"):
        raise ValueError(f"weights {which!r} are unknown; known: ema, student")
    if which == "ema" and not teacher:
        raise ValueError("weights=ema: this method has no teacher; use student")
    if which == "student" or not teacher:
        return "student", variables["params"]
    return "ema", ema.overlay(variables["params"], teacher)


def pixels(image: Any) -> UInt8[np.ndarray, "H W 3"]:
    """A picture (see `Model`) as upright RGB.

    Raises BadImage for one that cannot be read, FileNotFoundError, and TypeError for what is no picture.
    """
    if isinstance(image, str | Path):
        return decode(read_regular(image))
    if isinstance(image, bytes):
        return decode(image)
    if not isinstance(image, Image.Image):
        return pixels(_as_pil(np.asarray(image)))
    try:
        return upright_rgb(image)
    except Exception as error:  # on damaged bytes Pillow's decoders raise whatever they stumble over
        raise BadImage(f"truncated or damaged: {error}") from error


def _as_pil(array: np.ndarray) -> Image.Image:
    """Refuses numbers of another range or order, which would look like a picture and mean another one."""
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or channels not in (1, 3, 4):
        raise TypeError(
            f"{array.dtype} {list(array.shape)} is no picture; give a PIL image, a path, or uint8 [height, width, 3] "
            "with values from 0 to 255"
        )
    return Image.fromarray(array[:, :, 0] if array.ndim == 3 and channels == 1 else array)


def chunks(rows: Iterable[np.ndarray], size: int) -> Iterator[list[np.ndarray]]:
    """Lists of `size` rows, the last one shorter."""
    rows = iter(rows)
    while chunk := list(islice(rows, size)):
        yield chunk


def filled(chunk: Sequence[np.ndarray]) -> np.ndarray:
    """The rows as one array, with zeros behind them up to the next of SHAPES."""
    size = next(shape for shape in SHAPES if shape >= len(chunk))
    array = np.zeros((size, *chunk[0].shape), chunk[0].dtype)
    array[: len(chunk)] = chunk
    return array


def in_turn(calls: Iterable[tuple[Any, Any]]) -> Iterator[tuple[np.ndarray, Any]]:
    """Pairs of (array on the device, anything), the array on the host: in order, while up to AHEAD more are computed.

    A pair is taken from `calls` before the previous ones are waited for, and no more than AHEAD hold memory.
    """
    unfinished: deque[tuple[Any, Any]] = deque()
    for call in calls:
        unfinished.append(call)
        if len(unfinished) > AHEAD:
            yield _finished(unfinished.popleft())
    yield from map(_finished, unfinished)


def _finished(call: tuple[Any, Any]) -> tuple[np.ndarray, Any]:
    return np.asarray(call[0]), call[1]


def _reading(config: ConfigDict) -> list[Any]:
    """What the config says about how pictures and texts are read."""
    model, fields, size = config.model, config.preprocess, sizes.size_of(config.model)
    heads = size.num_heads, size.text_heads
    style = sorted(model.image_style.to_dict().items())
    kinds = model.image_size, model.context_length, model.text_activation, model.dtype
    geometry = fields.filter, fields.resize, fields.crop_ratio
    own = [] if geometry == USUAL_GEOMETRY else [geometry]  # the usual one was not hashed before it was a choice
    own += filter(None, [model.matmul_precision])
    return [heads, style, *kinds, tuple(fields.mean), tuple(fields.std), *own]
