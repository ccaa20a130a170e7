"""The files of `python -m detailclip_jax.visualize`: loads the runs, opens the images, draws and saves the figures.

    names = names_of(["runs/clip", "runs/detailclip"])
    write(Request(dict(zip(names, ["runs/clip", "runs/detailclip"])), Path("figures"), what=["attention"]), Console())

Every figure is written in all formats of the request, by default as png and svg.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from detailclip_jax.figures.style import save as save_figure
from detailclip_jax.inference import model as inference
from detailclip_jax.inference.model import Model
from detailclip_jax.run import visualize as drawing
from detailclip_jax.runtime.progress import Console


class Request(NamedTuple):
    """What to draw.

    paths: name in the figures -> workdir of a run.
    out: folder of the files.
    what: figures of models, or one of `visualize.PREDICTIONS`; None for all figures that every model can have.
    images: folders, patterns and files; None for scenes of stickers, or the evaluation set of a run of a dense task.
    scenes: whether scenes of stickers are shown in place of the evaluation set.
    num_images: how many images; first: the number of the first one, from 0, or None for images at equal distances.
    texts: of the maps of words; () for those of the scenes.
    follow_links: whether links may lead out of a folder of images.
    step, weights, preprocess: as in `inference.model.load`, for all runs.
    formats: suffixes of the files.
    """

    paths: Mapping[str, str]
    out: Path
    what: Sequence[str] | None = None
    images: Sequence[str] | None = None
    scenes: bool = False
    num_images: int = 6
    first: int | None = None
    texts: Sequence[str] = ()
    follow_links: bool = False
    step: int | None = None
    weights: str | None = None
    preprocess: Mapping[str, Any] = MappingProxyType({})
    options: drawing.Options = drawing.Options()
    formats: Sequence[str] = ("png", "svg")


def names_of(checkpoints: Sequence[str]) -> list[str]:
    """Returns as many last folders of each path as make the names different.  Raises ValueError for a path twice."""
    parts = [Path(checkpoint).absolute().parts for checkpoint in checkpoints]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["-".join(part[-length:]).strip("/") for part in parts]
        if len(set(names)) == len(names):
            return names
    twice = next(path for number, path in enumerate(checkpoints) if parts[number] in parts[:number])
    raise ValueError(f"two paths are the same folder: {twice}")


def write(request: Request, console: Console) -> None:
    """Writes the figures, prints the paths of their files, and says which figures and checkpoints are left out.

    Raises ValueError if none of the figures can be drawn, and what loading the runs and opening the images raises.
    """
    task = request.what[0] if request.what else ""
    if task in drawing.PREDICTIONS:
        predictions(task, request, console)
    else:
        of_models(request, console)


def predictions(task: str, request: Request, console: Console) -> None:
    """Writes the figure of runs of a dense task."""
    for path in request.paths.values():
        drawing.check_task(task, path)
    shown = None
    if request.images:
        shown = images_of(request, console)
    elif request.scenes:
        shown = drawing.plain_scenes(request.num_images, request.first or 0)
    draw = drawing.PREDICTIONS[task]
    save(draw(request.paths, request.num_images, shown, request.first, request.step), request, console)


def of_models(request: Request, console: Console) -> None:
    """Writes the figures of models."""
    models = load(request, console)
    drawing.check_same_view(models)
    if request.images:
        shown = images_of(request, console)
    else:
        config = next(iter(models.values())).config
        shown = drawing.scenes(config, request.num_images, request.first or 0, request.texts)
    reasons = {what: drawing.refusal(what, models, shown) for what in request.what or drawing.FIGURES}
    if all(reasons.values()):
        raise ValueError("\n".join(reasons.values()))
    for what, reason in reasons.items():
        if reason:
            console.say(f"left out: {reason}")
        elif told := drawing.left_out(what, models):
            console.say(told)
    for note in dict.fromkeys(note for what in reasons for note in drawing.notes(what, models)):
        console.say(note)
    for what in (what for what, reason in reasons.items() if not reason):
        save(drawing.draw(what, models, shown, request.options), request, console)


def load(request: Request, console: Console) -> dict[str, Model]:
    """Loads the models by name, and says which weights they have."""
    models = {}
    for name, path in request.paths.items():
        models[name] = inference.load(path, request.weights, request.step, request.preprocess)
        console.say(f"{name}: {models[name].config.method}, step {models[name].step}, {models[name].weights} weights")
    return models


def images_of(request: Request, console: Console) -> drawing.Shown:
    """Opens the images of the paths; says which linked folders are left out."""
    return drawing.files(
        request.images or (), request.num_images, request.first, request.texts, request.follow_links, console.say
    )


def save(figures: drawing.Figures, request: Request, console: Console) -> None:
    """Writes figures in the chosen formats, and prints the files."""
    for name, figure in figures.items():
        for suffix in request.formats:
            console.say(str(save_figure(figure, request.out / f"{name}.{suffix}")))
