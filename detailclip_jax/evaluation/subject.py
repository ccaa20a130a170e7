"""The subject of an evaluation: a checkpoint of this package, or any object that encodes images and texts."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
from ml_collections import ConfigDict

from detailclip_jax.data.preprocessing import Transform
from detailclip_jax.data.tokenizer import Tokenizer
from detailclip_jax.data.vocabularies import tokenizer_of
from detailclip_jax.evaluation.embedder import Tokenize
from detailclip_jax.evaluation.evaluator import JOINT
from detailclip_jax.inference import model as inference
from detailclip_jax.inference import readout_choice
from detailclip_jax.inference.readout_maps import default_readout
from detailclip_jax.models.readouts import READOUTS
from detailclip_jax.runtime.errors import unknown
from detailclip_jax.training import ema
from detailclip_jax.training import mesh as meshes
from detailclip_jax.training.published_names import LONG_TEXTS, workdir_of
from detailclip_jax.training.train_state import TrainState
from detailclip_jax.types import Params

WEIGHTS = ("student", "ema")


@runtime_checkable
class Encoder(Protocol):
    """Interface of a model from another library: takes numpy arrays, returns arrays that numpy can convert."""

    def encode_image(self, images: np.ndarray, /) -> Any:
        """uint8 [B, S, S, 3] -> embeddings [B, E], not necessarily normalised."""
        ...

    def encode_text(self, tokens: np.ndarray, /) -> Any:
        """int32 [B, T], the output of `tokenize` -> embeddings [B, E]."""
        ...


class Subject(NamedTuple):
    """An encoder with its sets of weights, and its preprocessing."""

    name: str
    encode: Any  # functions image, text, cls, ... of (params, array)
    weights: Mapping[str, Params]
    digests: Mapping[str, str | None]  # identify the weights; None: embeddings are not cached
    transform: Transform  # of the model's images
    tokenize: Tokenize
    step: int | None = None
    method: str = ""
    config: ConfigDict | None = None
    readouts: Sequence[str] = ()  # of a task of dense that names none
    default_readouts: Sequence[str] = ()  # of one that names the default
    long_texts: "Subject | None" = None  # the same model with the text side that it has for long captions

    def digest_of(self, params: Params) -> str | None:
        """The digest of one of the sets of weights; None for others."""
        return next((self.digests[name] for name, weights in self.weights.items() if weights is params), None)


def from_checkpoint(
    workdir: str | Path,
    step: int | None = None,
    which: Sequence[str] | None = None,
    preprocess: Mapping[str, Any] | None = None,
) -> Subject:
    """The subject of a workdir written by `main` or `import_torch`, with its weights replicated on all devices.

    `which` selects from "student" and "ema"; the default is all of `weights_of`. `step` defaults to the newest
    checkpoint. `preprocess` overrides fields of this group of the config. Its `readouts` are those that were the best
    for its weights, all if they were not compared for each of them; then `default_readouts` has that of the method.
    `long_texts` is that of an import whose model has a long text side besides its usual one.
    Raises FileNotFoundError, ValueError for missing weights, and CheckpointError for an unreadable checkpoint.
    """
    model = inference.load(workdir, step=step, preprocess=preprocess)
    folder = workdir_of(workdir)
    there = weights_of(model.variables["params"], model.variables["ema_params"])
    chosen = {name: there[name] for name in check_weights(which, there, model.config.method)}
    digests = {
        name: dataclasses.replace(model, params=params, weights=name).fingerprint for name, params in chosen.items()
    }
    choices = [readout_choice.read(folder, model.step, name) for name in chosen]
    best = tuple(dict.fromkeys(choice.readout for choice in choices if choice)) if all(choices) else ()
    everywhere, config = meshes.replicated(meshes.make_mesh()), model.config
    long_texts = folder / LONG_TEXTS
    return Subject(
        name=str(workdir),
        encode=model.encode,
        weights={name: jax.device_put(jax.device_get(params), everywhere) for name, params in chosen.items()},
        digests=digests,
        transform=model.transform,
        tokenize=tokenizer_of(config),
        step=model.step,
        method=config.method,
        config=config,
        readouts=best or tuple(READOUTS),
        default_readouts=best or (default_readout(config),),
        long_texts=from_checkpoint(long_texts, None, which, preprocess) if long_texts.is_dir() else None,
    )


def text_sides(subject: Subject) -> Iterator[str]:
    """Yields a sentence on which text side reads which captions; none for a model with one side."""
    if subject.long_texts:
        usual, long = (side.config.model.context_length for side in (subject, subject.long_texts) if side.config)
        yield f"Retrieval of long captions uses the long text side ({long} tokens), all else the other ({usual} tokens)"


def weights_of(student: Params, teacher: Params) -> dict[str, Params]:
    """The sets of weights by name: "student" and, if the teacher has an encoder or a projection, "ema".

    A teacher that is a prototype head alone (TIPSv2) encodes as the student does.
    """
    if not set(teacher) & set(JOINT):
        return {"student": student}
    return {"student": student, "ema": ema.overlay(student, teacher)}


def all_weights(state: TrainState) -> dict[str, Params]:
    """Every set of weights of a training state: "student" and, if the teacher has encoders, "ema"."""
    return weights_of(state.params, state.ema_params)


def check_weights(which: Sequence[str] | None, there: Mapping[str, Params], method: str) -> Sequence[str]:
    """The names of the weights to evaluate, in the usual order. Raises ValueError for unknown or missing weights."""
    which = (which,) if isinstance(which, str) else which
    for name in which or ():
        if name not in WEIGHTS:
            raise ValueError(unknown("weights", name, WEIGHTS))
        if name not in there:
            raise ValueError(f"--weights={name}: {method} has no teacher with encoders of its own; use student")
    return [name for name in there if which is None or name in which]


def of_model(
    model: Encoder,
    *,
    image_size: int = 224,
    tokenize: Tokenize | None = None,
    filter: str = "bilinear",
    name: str = "model",
    identity: str | None = None,
) -> Subject:
    """The subject of any object with `encode_image` and `encode_text`, see `Encoder`.

    The model receives uint8 images, resized with `filter`. `tokenize` is CLIP's tokenizer with 77 tokens by default.
    `identity` is a text that changes with the weights; without it, embeddings are not cached.
    """
    empty = {name: {} for name in JOINT}
    tokens, transform = tokenize or Tokenizer(77), Transform(image_size, image_size, filter)
    return Subject(name, Foreign(model), {"model": empty}, {"model": identity}, transform, tokens)


class Foreign:
    """A model from another library as functions of (params, array); `params` is ignored."""

    def __init__(self, model: Encoder):
        self.image = self.cls = _alone(model.encode_image)
        self.text = _alone(model.encode_text)


def _alone(encode: Callable[[np.ndarray], Any]) -> Callable[[Params, np.ndarray], np.ndarray]:
    def unit(params: Params, array: np.ndarray) -> np.ndarray:
        embeddings = np.asarray(encode(array), np.float32)
        return embeddings / np.maximum(np.linalg.norm(embeddings, axis=-1, keepdims=True), 1e-12)

    return unit
