"""The weights in a folder of open_clip, transformers, TIPS or dino.txt, by the names of the files; none is opened."""

import re
from collections.abc import Collection, Mapping
from pathlib import Path

OF_HUB = ("model.safetensors", "pytorch_model.bin")  # transformers' and timm's
NAMES = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "model.safetensors",
    "open_clip_pytorch_model.bin",
    "pytorch_model.bin",
)
# Configs that describe the weights beside them.
BESIDE = ("config.json", "open_clip_config.json", "preprocessor_config.json", "processor_config.json")
SHARD = re.compile(r"-\d+(-of-(\d+)\.(safetensors|bin))$")  # the end of the name of a part of a transformers model
VISION, TEXT = "vision", "text"
PARTS = (VISION, TEXT)  # of a TIPS model, which has one file for each
HEAD_AND_TEXTS = "dinotxt"  # in the name of dino.txt's file, whose image encoder has a file of its own
PART_SUFFIXES = (".npz", ".pt", ".pth", ".safetensors")
SUFFIXES = (*PART_SUFFIXES, ".bin")


def model_in(folder: Path) -> Path | None:
    """Returns the file of an open_clip or transformers model, or the first of several; None without one."""
    shards = sorted(path.name for path in folder.glob("*-of-*") if SHARD.search(path.name))
    return next((folder / name for name in (*NAMES, *shards) if (folder / name).is_file()), None)


def shards_of(file: Path) -> list[Path]:
    """Returns all files of a model that is divided into several, as model-00001-of-00002.safetensors, or the file.

    Raises ValueError if some of them are missing.
    """
    end = SHARD.search(file.name)
    if end is None:
        return [file]
    same = (path for path in file.parent.glob(f"*{end[1]}") if SHARD.sub("", path.name) == SHARD.sub("", file.name))
    shards = sorted(same)
    if len(shards) != int(end[2]):
        raise ValueError(
            f"{file.parent} has {len(shards)} files like {file.name}, of {int(end[2])}; download the others"
        )
    return shards


def parts_in(folder: Path) -> Mapping[str, list[Path]]:
    """Returns the files NAME_vision and NAME_text of TIPS, by part; none beside the file of another model."""
    if model_in(folder):
        return {part: [] for part in PARTS}
    return {part: sorted(p for p in folder.glob(f"*_{part}.*") if p.suffix in PART_SUFFIXES) for part in PARTS}


def is_pair(names: Collection[str]) -> bool:
    """Returns whether two files are one model: of TIPS one for each part, or dino.txt's and its image encoder's."""
    stems = [Path(name).stem for name in names]
    parts = {part for part in PARTS for stem in stems if stem.endswith(f"_{part}")}
    return len(stems) == 2 and (len(parts) == 2 or sum(HEAD_AND_TEXTS in stem for stem in stems) == 1)


def is_model(folder: Path) -> bool:
    """Returns whether `import_torch` finds the weights in a folder: a model's file, or the two of TIPS or dino.txt."""
    if model_in(folder) is not None or all(len(files) == 1 for files in parts_in(folder).values()):
        return True
    return is_pair([path.name for path in folder.iterdir() if path.suffix in PART_SUFFIXES])
