"""Figures of models: what they attend to, remove, reconstruct and represent, drawn by `plots` and `maps`.

models = {"clip": load("runs/clip"), "detailclip": load("runs/detailclip")}
shown = scenes(models["clip"].config, 6)
draw("similarity", models, shown, Options())      # {"similarity": a matplotlib figure}
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
from jaxtyping import Float, UInt8
from ml_collections import ConfigDict
from PIL import Image

from detailclip_jax import methods
from detailclip_jax.config import sizes
from detailclip_jax.data.decoding import BadImage
from detailclip_jax.data.image_files import find
from detailclip_jax.data.sources import indices_to_show
from detailclip_jax.data.stickers.scene_source import Stickers, canvas_of, noun_names
from detailclip_jax.data.stickers.sprites import ATTRIBUTION
from detailclip_jax.figures import maps, plots
from detailclip_jax.figures.maps import Overview, Words
from detailclip_jax.inference.model import Model, pixels
from detailclip_jax.inference.similar_patches import pca_colours, similarity
from detailclip_jax.models.readouts import READOUTS
from detailclip_jax.runtime.errors import RunError
from detailclip_jax.runtime.files import read_bytes
from detailclip_jax.runtime.terminal import counted

SPLIT = "held_out_pairs"  # scenes of nouns that training never shows together
LONGEST = 640  # pixels; larger images are reduced before maps of words and predictions are drawn over them
ALL = "all"  # as a read-out

Figures = dict[str, Any]  # file name without suffix -> matplotlib figure


class Shown(NamedTuple):
    """The images of the figures.

    images: as `Model` takes them, one per image.
    texts: the texts of each image's maps; () where the user gives them.
    contrast: further texts that a map is relative to; () for those of the image alone.
    credit: the line below the figures.
    unreadable: the images that are left out, each with its path and the reason.
    """

    images: Sequence[UInt8[np.ndarray, "_h _w 3"]]
    texts: Sequence[Sequence[str]]
    contrast: Sequence[str] = ()
    credit: str = ""
    unreadable: Sequence[str] = ()


class Options(NamedTuple):
    """What a user may choose: see the flags of the command."""

    layers: Sequence[int] | None = None
    patch: tuple[int, int] | None = None
    ratio: float | None = None
    readout: str | None = None  # by default that of `Model.readout`; ALL draws each in `words`


def scenes(config: ConfigDict, count: int, first: int = 0, texts: Sequence[str] = ()) -> Shown:
    """Scenes of stickers on the canvas of a model's training, of held-out pairs of nouns.

    Without `texts` the texts of a scene are its nouns, and their maps are relative to those of all 96 nouns.
    """
    stickers = Stickers(SPLIT, size=canvas_of(config.model.image_size), num_scenes=first + count)
    chosen, names = [stickers[i] for i in range(first, first + count)], noun_names()
    nouns = [[f"a {names[noun]}" for noun in dict.fromkeys(scene["nouns"].tolist())] for scene in chosen]
    images = [scene["image"] for scene in chosen]
    if texts:
        return Shown(images, [texts] * count, (), ATTRIBUTION)
    return Shown(images, nouns, [f"a {name}" for name in names], ATTRIBUTION)


def files(
    places: Sequence[str],
    count: int,
    first: int | None = None,
    texts: Sequence[str] = (),
    say: Callable[[str], None] = lambda line: None,
) -> Shown:
    """Images of folders, patterns and files, at equal distances in the order of `places` and by name.

    With `first` they are those from this number on.
    `say` receives a line for every folder that is left out because it cannot be listed.
    Raises FileNotFoundError for a place without images, and RunError if all images are unreadable.
    """
    folders = [find(place) for place in places]
    for _, reason in itertools.chain.from_iterable(folder.left_out for folder in folders):
        say(f"left out: {reason}")
    every = [(folder, name) for folder in folders for name in folder.names]
    if first is not None and first >= len(every):
        raise ValueError(f"--first={first}, but there are only {len(every)} images")
    images, unreadable = [], []
    for folder, name in (every[number] for number in indices_to_show(len(every), count, first)):
        try:
            images.append(pixels(read_bytes(folder.root / name)))
        except (BadImage, OSError) as error:
            unreadable.append(f"{folder.root / name}: {error}")
    if not images:
        raise RunError("\n".join([f"none of the {counted(len(unreadable), 'image')} is readable:", *unreadable]))
    return Shown(images, [texts] * len(images), unreadable=unreadable)


def draw(what: str, models: Mapping[str, Model], shown: Shown, options: Options) -> Figures:
    """Computes and draws one of `FIGURES`, without the checkpoints that `left_out` names.

    Raises ValueError if no checkpoint can have the figure, or if an option does not fit.
    """
    if reason := refusal(what, models, shown):
        raise ValueError(reason)
    return FIGURES[what](models, shown, options)


def refusal(what: str, models: Mapping[str, Model], shown: Shown) -> str:
    """Why these checkpoints or images cannot have the figure, with the way out; "" if they can."""
    if not able(what, models):
        need, (names, lack) = NEEDS[what], _lacking(what, models)
        return f"--what={what} needs {need.networks}, which {names} {lack}; {need.way_out}"
    if what == "words" and not all(shown.texts):
        return "--what=words needs texts for these images: --text='a dog' --text=grass"
    return ""


def left_out(what: str, models: Mapping[str, Model]) -> str:
    """Which checkpoints the figure is drawn without, and what they lack; "" if they all have what it needs."""
    names, lack = _lacking(what, models)
    return f"{what} is drawn without {names}, which {lack} {NEEDS[what].networks}" if names else ""


def _lacking(what: str, models: Mapping[str, Model]) -> tuple[str, str]:
    """The checkpoints that cannot have the figure ("" if there are none), and the verb for them."""
    without = [f"{m.path} ({m.config.method})" for name, m in models.items() if name not in able(what, models)]
    return " and ".join(without), "lacks" if len(without) == 1 else "lack"


def able(what: str, models: Mapping[str, Model]) -> dict[str, Model]:
    """The models that have the networks of the figure; all of them have an image encoder."""
    if what not in NEEDS:
        return dict(models)
    return {name: model for name, model in models.items() if can(model, NEEDS[what].call)}


def check_same_view(models: Mapping[str, Model]) -> None:
    """Raises ValueError unless all models crop an image to the same square, whatever its resolution."""
    seen = {name: (m.config.preprocess.resize, round(m.config.preprocess.crop_ratio, 6)) for name, m in models.items()}
    if len(set(seen.values())) > 1:
        listed = ", ".join(f"{name}: {resize}, crop ratio {ratio}" for name, (resize, ratio) in seen.items())
        raise ValueError(
            f"the checkpoints see different parts of an image ({listed}); --resize and --crop-ratio set one for all"
        )


def notes(what: str, models: Mapping[str, Model]) -> list[str]:
    """What a reader of the figure must know of these checkpoints."""
    if what not in ("removal", "overview"):
        return []
    others = {
        name: model.config.method
        for name, model in models.items()
        if not methods.build(model.config).masks_by_attention or model.config.masking.strategy != "attention_low"
    }
    return [
        f"{name}: the method {method} does not remove the patches of lowest attention in training; "
        "the figure shows what DetailCLIP's removal would take"
        for name, method in others.items()
    ]


def views(models: Mapping[str, Model], shown: Shown) -> list[UInt8[np.ndarray, "E E 3"]]:
    """The square that the models see of each image, at a size that all grids of patches divide."""
    first, grids = next(iter(models.values())), [_side(model) for model in models.values()]
    return [
        maps.enlarged(cast(np.ndarray, first.view(image)), grids) for image in shown.images
    ]  # models are on squares


def _side(model: Model) -> int:
    return sizes.num_side_patches(model.config.model)


def attention(models: Mapping[str, Model], shown: Shown, options: Options) -> Figures:
    """By layer for all images, and by layer and head for the first one."""
    images, heads = views(models, shown), {n: model.attention_heads(shown.images) for n, model in models.items()}
    for name, values in heads.items():
        if wrong := [layer for layer in options.layers or () if not 1 <= layer <= values.shape[1]]:
            raise ValueError(f"--layers={wrong[0]}: {name} has layers 1 to {values.shape[1]}")
    drawn = {"attention": maps.layers_figure(images, heads, options.layers, shown.credit)}
    for name, values in heads.items():
        title = f"CLS attention by layer and head: {name}; {maps.SCALE}"
        figure = maps.heads_figure(images[0], values[0], options.layers, title, shown.credit)
        drawn[_named("attention_heads", name, models)] = figure
    return drawn


def _named(what: str, name: str, models: Mapping[str, Model]) -> str:
    return f"{what}-{name}" if len(models) > 1 else what


def removal(models: Mapping[str, Model], shown: Shown, options: Options) -> Figures:
    """Eq. 9, and the patches that removal keeps."""
    attended = {n: _flat(np.stack([m.attention(image) for image in shown.images])) for n, m in models.items()}
    hidden = {name: _flat(model.removed(shown.images, options.ratio)) for name, model in models.items()}
    images = np.stack(views(models, shown))
    return {"removal": plots.attention_figure(images, attended, hidden, shown.credit, "image")}


def _flat(values: np.ndarray) -> np.ndarray:
    return values.reshape(len(values), -1)


def reconstruction(models: Mapping[str, Model], shown: Shown, options: Options) -> Figures:
    """What the decoder sees and what it predicts, per checkpoint that has one."""
    images = views(models, shown)
    rows: dict[str, Sequence[np.ndarray]] = {"image": images}
    for name, model in able("reconstruction", models).items():
        label, removed = f"{name}\n" if len(models) > 1 else "", model.removed(shown.images, options.ratio)
        rows[f"{label}student's input"] = [plots.grey_out(image, mask.ravel()) for image, mask in zip(images, removed)]
        rows[f"{label}reconstruction"] = _enlarged(model, model.reconstruct(shown.images, removed))
    title = "Removed patches, reconstructed from the kept ones"
    return {"reconstruction": plots.image_grid(rows, title, shown.credit)}


def _enlarged(model: Model, images: UInt8[np.ndarray, "B S S 3"]) -> list[UInt8[np.ndarray, "E E 3"]]:
    return [maps.enlarged(image, [_side(model)]) for image in images]


def similar(models: Mapping[str, Model], shown: Shown, options: Options) -> Figures:
    """The cosine of patch features with the chosen patch; by default the one that the first model attends to most.

    All models show the same place: each takes the patch of its grid that has the centre of the chosen one.
    """
    first = next(iter(models.values()))
    if options.patch:
        chosen = [options.patch] * len(shown.images)
    else:
        chosen = [divmod(int(values.argmax()), values.shape[1]) for values in map(first.attention, shown.images)]
    places = {name: [on_grid(each, _side(first), _side(model)) for each in chosen] for name, model in models.items()}
    cosines = {n: similarity(m.features(shown.images).patches, places[n]) for n, m in models.items()}
    return {"similarity": maps.similarity_figure(views(models, shown), cosines, places, shown.credit)}


def on_grid(place: tuple[int, int], side: int, other: int) -> tuple[int, int]:
    """The patch of a grid of `other` patches along a side that has the centre of a patch of a grid of `side`."""
    row, column = ((2 * number + 1) * other // (2 * side) for number in place)
    return row, column


def pca(models: Mapping[str, Model], shown: Shown, options: Options) -> Figures:
    """Principal components of patch features, shared by the images of a checkpoint."""
    colours = {name: pca_colours(model.features(shown.images).patches) for name, model in models.items()}
    return {"pca": maps.pca_figure(views(models, shown), colours, shown.credit)}


def words(models: Mapping[str, Model], shown: Shown, options: Options) -> Figures:
    """A map per text over each image, of the checkpoints that embed texts; of every read-out, a figure for each one."""
    shown, having = shown._replace(images=[reduced(image) for image in shown.images]), able("words", models)
    alone = not shown.contrast and all(len(set(texts)) == 1 for texts in shown.texts)
    title = maps.ONE_WORD_TITLE if alone else maps.WORDS_TITLE
    if options.readout == ALL:
        return {
            _named("words", name, models): maps.readouts_figure(
                shown.images,
                {readout: words_of(model, shown, readout) for readout in READOUTS},
                shown.credit,
                f"{title}, by read-out: {name}",
            )
            for name, model in having.items()
        }
    names = labels(having, options)
    rows = {label: words_of(having[name], shown, readout) for name, (readout, label) in names.items()}
    title += f": {next(iter(rows))}".replace("\n", ", ") if len(having) == 1 else ""
    return {"words": maps.words_figure(shown.images, rows, shown.credit, title)}


def labels(models: Mapping[str, Model], options: Options) -> dict[str, tuple[str, str]]:
    """The read-out of each model's words, and its label: the model's name and this read-out."""
    chosen = None if options.readout == ALL else options.readout
    readouts = {name: chosen or model.readout for name, model in models.items()}
    return {name: (readout, f"{name}\nread-out {readout}") for name, readout in readouts.items()}


def reduced(image: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "h w 3"]:
    """The image with a longer side of at most LONGEST pixels."""
    small = Image.fromarray(image)
    small.thumbnail((LONGEST, LONGEST))
    return np.asarray(small)


def words_of(model: Model, shown: Shown, readout: str) -> list[Words]:
    """The maps of each image's texts, relative to the mean over these texts and those of `contrast`."""
    word_maps = []
    for image, texts in zip(shown.images, shown.texts):
        every = list(dict.fromkeys([*texts, *shown.contrast]))
        values: Float[np.ndarray, "T H W"] = plots.relative(model.dense(image, every, readout))
        word_maps.append(Words(texts, values[[every.index(text) for text in texts]]))
    return word_maps


def overview(models: Mapping[str, Model], shown: Shown, options: Options) -> Figures:
    """Image, attention, kept patches, reconstruction and words side by side; a row per image and checkpoint."""
    names, parts = labels(models, options), {}
    for name, model in models.items():
        images, removed = views({"": model}, shown), model.removed(shown.images, options.ratio)
        drawn: Sequence[Any] = [None] * len(images)
        if can(model, "reconstruct"):
            drawn = _enlarged(model, model.reconstruct(shown.images, removed))
        word_maps: Sequence[Words | None] = [None] * len(images)
        if can(model, "dense") and all(shown.texts):
            squares = shown._replace(images=[model.view(image) for image in shown.images])
            word_maps = words_of(model, squares, names[name][0])
        attended = [model.attention(image) for image in shown.images]
        parts[name] = [Overview(*each) for each in zip(images, attended, removed, drawn, word_maps)]
    rows = [parts[name][i] for i in range(len(shown.images)) for name in models]
    labelled = [names[name][1] if parts[name][0].words else name for name in models]
    size = 1.5 if len(models) == 1 else 1.12  # inches
    figure = maps.overview_figure(rows, credit=shown.credit, rows=labelled * len(shown.images), size=size)
    return {"overview": figure}


def can(model: Model, call: str) -> bool:
    """Whether the model has the networks that a method of it runs."""
    try:
        model.require(call)
    except ValueError:
        return False
    return True


FIGURES: dict[str, Callable[[Mapping[str, Model], Shown, Options], Figures]] = {
    "overview": overview,
    "attention": attention,
    "removal": removal,
    "reconstruction": reconstruction,
    "similarity": similar,
    "pca": pca,
    "words": words,
}


class Need(NamedTuple):
    """What a figure needs beside an image encoder.

    call: name of the function of `Model` that the figure calls; networks: what it runs; way_out: what to do without.
    """

    call: str
    networks: str
    way_out: str


NEEDS = {
    "reconstruction": Need(
        "reconstruct", "a decoder", "use a checkpoint of a method with a pixel loss, such as mae or detailclip"
    ),
    "words": Need(
        "dense",
        "a text encoder with its tokenizer and a joint space",
        "use a checkpoint of a method with captions, such as clip, or import it with --tokenizer=FILE",
    ),
}
