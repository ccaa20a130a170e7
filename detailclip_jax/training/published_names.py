"""Names of models that others have published, and the workdir in the cache that belongs to each.

    hf://openai/clip-vit-base-patch16                 a repository of the Hugging Face hub
    hf://openai/clip-vit-base-patch16@57c2164         at a revision: a commit, branch or tag
    open_clip:ViT-B-16/laion2b_s34b_b88k              as open_clip.create_model(MODEL, pretrained=TAG)
    timm:vit_base_patch14_dinov2.lvd142m              as timm.create_model(NAME, pretrained=True)
    ViT-B-16.pt                                       a file or folder of another library on this disk

`interop.published.fetch` downloads and converts the model into that workdir; `workdir_of` only says where it is, so
that a stored config can name a model instead of a folder of one machine.
"""

import hashlib
import re
from pathlib import Path
from urllib.parse import quote

from detailclip_jax.runtime import caches, weight_files

HUB = re.compile(r"hf://(?!datasets/|spaces/)(?P<repository>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")
OPEN_CLIP = re.compile(r"open_clip:(?P<model>[\w./-]+)/(?P<tag>[\w.-]+)")
TIMM = re.compile(r"timm:(?P<model>[\w-]+\.[\w.-]+)")
FORMS = "hf://OWNER/NAME, hf://OWNER/NAME@REVISION, open_clip:MODEL/TAG or timm:NAME.TAG"
FOLDER = "models"  # in the cache
ORIGIN = "origin.json"  # in a workdir of the cache, or of an import by name
LONG_TEXTS = "long_texts"  # in the workdir of an import: a workdir of the same model with its long text side
NAMING = "init", "init_text", "distill.teacher"  # fields of configs that name a checkpoint


def is_remote(name: str) -> bool:
    """Whether a text names a model of the hub, open_clip or timm.

    Raises ValueError for a text that begins so and has another form.
    """
    if any(form.fullmatch(name) for form in (HUB, OPEN_CLIP, TIMM)):
        return True
    if re.match(r"hf:(?!//(datasets|spaces)/)|open_clip:|timm:", name):
        raise ValueError(f"{name!r} does not name a model; the forms are {FORMS}")
    return False


def is_local(path: str | Path) -> bool:
    """Whether a path is a file of weights, or a folder that holds some and is no workdir."""
    path = Path(path)
    if path.is_dir():
        return weight_files.is_model(path) and not (path / "checkpoints").is_dir()
    return path.suffix in weight_files.SUFFIXES and path.is_file()


def workdir_of(name: str | Path) -> Path:
    """Returns the workdir of a model: the path itself if it is one, else the folder of the cache for it.

    workdir_of("hf://openai/clip-vit-base-patch16").name == "hf--openai%2Fclip-vit-base-patch16"
    workdir_of("runs/stickers") == Path("runs/stickers")
    """
    if is_remote(str(name)):
        scheme, rest = re.split(r":(?://)?", str(name), maxsplit=1)
        return caches.folder() / FOLDER / f"{scheme}--{quote(rest, safe='@')}"
    path = Path(name).expanduser()
    if not is_local(path):
        return path
    beside = (path.with_name(name) for name in (*weight_files.BESIDE, f"{path.name}.json"))
    files = sorted(path.iterdir()) if path.is_dir() else [path, *filter(Path.is_file, beside)]
    stamps = [(str(file.resolve()), (stat := file.stat()).st_size, stat.st_mtime_ns) for file in files]
    digest = hashlib.sha256(repr(stamps).encode()).hexdigest()[:12]
    return caches.folder() / FOLDER / f"{path.stem}-{digest}"
