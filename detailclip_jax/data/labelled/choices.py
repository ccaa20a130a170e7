"""Sets that ask which caption fits an image, or a box of it, in the layouts of their publishers.

    bench = open_choices("sugarcrepe", "/data")
    bench.choices[0]      # Choice(image=0, captions=("a cat on a mat", "a dog on a mat"), num_right=1, group="add_obj")

| set | files, images | source of the rule |
|---|---|---|
| winoground | examples.jsonl, images/NAME.png | facebook/winoground on the Hugging Face hub; arXiv 2204.03162 |
| sugarcrepe | seven files such as add_obj.json, COCO val2017 | RAIVNLab/sugar-crepe, main_eval.py |
| sugarcrepe_pp | five files such as swap_obj.json, COCO val2017 | Sri-Harsha/scpp, VLMs/test_Variants_CLIP.py |
| mmvp_vlm | Questions.csv, MLLM_VLM Images/PATTERN/N.jpg | tsb0601/MMVP, scripts/evaluate_vlm.py |
| aro_relation | visual_genome_relation.json, images | mertyg/vision-language-models-are-bows, its notebook |
| aro_attribution | visual_genome_attribution.json, images | the same |
| aro_coco_order, aro_flickr_order | parquet tables with images | the same, dataset_zoo/aro_datasets.py |
| fg_ovd | 1_attributes.json and three others, COCO 2017 | lorebianchi98/FG-OVD, and FG-CLIP's fgovd_evaluation |

ARO's orders are random, and its authors did not release them; the tables are those that MTEB evaluates.  FG-OVD's boxes
are cut out of the image, as in its authors' evaluation of CLIP.  Others pool the features of the whole image in the box
(360CVGroup/FG-CLIP; `boxes.boxes_of`), and their numbers do not compare.
"""

import csv
import functools
import io
import itertools
import json
import math
import pathlib
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from detailclip_jax.data.decoding import decode_whole
from detailclip_jax.data.labelled.contents import (
    LabelledSet,
    fingerprint,
    read_image_file,
    reading,
    root_with,
    sizes_of,
    text_of,
)
from detailclip_jax.data.labelled.long_captions import json_rows
from detailclip_jax.data.labelled.opening import Readiness, readiness, warn_of_size
from detailclip_jax.data.sources import BadRecord, Example, MissingData
from detailclip_jax.runtime import extras
from detailclip_jax.runtime.files import MAX_BYTES, read_bytes

MOST_NEGATIVES = 10  # of FG-OVD: a box has one right caption and up to ten others
FEWEST_OF_PAIR = 25  # cases of a pair of attributes that ARO evaluates
UNEVALUATED = pathlib.Path(__file__).parents[1] / "assets" / "aro_unevaluated_relations.txt"
SUGARCREPE = ("add_obj", "add_att", "replace_obj", "replace_att", "replace_rel", "swap_obj", "swap_att")
SUGARCREPE_PP = {  # each with its name on the Hugging Face hub
    "replace_obj": "replace_object",
    "replace_att": "replace_attribute",
    "replace_rel": "replace_relation",
    "swap_obj": "swap_object",
    "swap_att": "swap_atribute",
}
FG_OVD = {"hard": "1_attributes", "medium": "2_attributes", "easy": "3_attributes", "trivial": "shuffle_negatives"}
MOST_ROWS, ROWS_AT_ONCE = 100_000, 4096  # of parquet tables: ARO's have 25,010
MOST_CHARACTERS = 1000  # of their captions
ORDERS = ("correct_caption", "hard_text_1", "hard_text_2", "hard_text_3", "hard_text_4")

EACH, MEAN_OF_GROUPS, PAIRS, PAIRED_IMAGES = "each", "mean of groups", "pairs", "paired images"

Box = tuple[float, float, float, float]


class Choice(NamedTuple):
    """An image, by its index in the source, and captions, of which the first `num_right` fit it.

    In sets of pairs, choices 2i and 2i + 1 have the same two captions, and each caption is that of one of the images.
    """

    image: int
    captions: tuple[str, ...]
    num_right: int = 1
    group: str = ""


class ChoiceSet(NamedTuple):
    """The images, as a set without classes, and the choices.

    rule: EACH: a choice is right if every right caption is nearer to the image than every wrong one; accuracy of all,
        and of each group.  MEAN_OF_GROUPS: the mean of the groups' accuracies.  PAIRS: Winoground's text, image and
        group score.  PAIRED_IMAGES: a pair is right if each caption is nearer to its own image than to the other.
    """

    data: LabelledSet
    choices: Sequence[Choice]
    rule: str = EACH

    @property
    def units(self) -> list[Sequence[Choice]]:
        """The choices one by one, or two by two in a set of pairs."""
        step = 2 if self.rule in (PAIRS, PAIRED_IMAGES) else 1
        return [self.choices[first : first + step] for first in range(0, len(self.choices), step)]


class Picture(NamedTuple):
    """An image file, and the box in it that is meant: xyxy in pixels, None for the whole image."""

    path: str
    box: Box | None = None


class Row(NamedTuple):
    """One choice as its file has it."""

    picture: Picture
    captions: tuple[str, ...]
    num_right: int = 1
    group: str = ""


Listing = tuple[Sequence[Row], Sequence[pathlib.Path]]  # with the folders in which the images may be


class Layout(NamedTuple):
    """How a set is read.

    read: folder -> its rows; None if its files are not there.  A set without it is in parquet tables.
    folders: names of its folder in the data folder.
    get: how to get it into {folder}.
    num: the published number of choices; None if it is not known.
    """

    read: Callable[[pathlib.Path], Listing | None] | None
    folders: tuple[str, ...]
    get: str
    rule: str = EACH
    num: int | None = None


def open_choices(name: str, data_dir: str | pathlib.Path) -> ChoiceSet:
    """Opens a set of `CHOICES` in the data folder.  A warning is logged if it does not have its published size.

    Raises MissingData with the searched folders and how to get the set, or with the file that is not as published.
    """
    layout = CHOICES[name]
    tried = [pathlib.Path(data_dir) / folder for folder in layout.folders]
    for folder in filter(pathlib.Path.is_dir, tried):
        if opened := _read(name, layout, folder):
            warn_of_size(name, len(opened.choices), layout.num, "choices")
            return opened
    seen = "; ".join(f"{path} {'does not hold its files' if path.is_dir() else 'does not exist'}" for path in tried)
    raise MissingData(f"no data of {name!r}: {seen}.  Do this:\n  {layout.get.replace('{folder}', str(data_dir))}")


def _read(name: str, layout: Layout, folder: pathlib.Path) -> ChoiceSet | None:
    if layout.read is None:  # parquet tables: a right caption and four others in each row, with the image
        captions: list[tuple[str, ...]] = []
        for file in (files := sorted(folder.rglob("*.parquet"))):
            with reading(file, f"a table of {name}"):
                captions += _caption_rows(file, MOST_ROWS - len(captions))
        if not captions:
            return None
        marks = fingerprint(itertools.chain([name], map(repr, captions)))
        data = LabelledSet(name, TableImages(files), (), marks, None)
        return ChoiceSet(data, [Choice(index, texts) for index, texts in enumerate(captions)])
    listing = layout.read(folder)
    if listing is None:
        return None
    rows, roots = listing
    if not rows:
        raise MissingData(f"{folder}: the files of {name} have no choice that is evaluated; download them again")
    pictures = list(dict.fromkeys(row.picture for row in rows))
    root = root_with((picture.path for picture in pictures), roots, name)
    places = {picture: i for i, picture in enumerate(pictures)}
    choices = [Choice(places[row.picture], row.captions, row.num_right, row.group) for row in rows]
    sizes = sizes_of(root, [picture.path for picture in pictures])
    marks = fingerprint((name, *map(repr, zip(pictures, sizes)), *map(repr, choices)))
    return ChoiceSet(LabelledSet(name, Pictures(root, pictures), (), marks, None), choices, layout.rule)


class Pictures:
    """A source of image files, and of boxes cut out of them."""

    def __init__(self, root: pathlib.Path, pictures: Sequence[Picture]):
        self.root, self.pictures = root, pictures

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> Example:
        path, box = self.pictures[index]
        image: Any = read_image_file(self.root, path)
        if box is not None:
            image = cut(decode_whole(image), box)
        return {"image": image, "captions": (), "label": -1, "key": path if box is None else f"{path} {box}"}


def cut(image: Any, box: Box) -> Any:
    """Returns the pixels that a box touches; BadRecord if there are none."""
    left, top, right, bottom = math.floor(box[0]), math.floor(box[1]), math.ceil(box[2]), math.ceil(box[3])
    pixels = image[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
    if not pixels.size:
        raise BadRecord(f"the box {box} is outside of the image of {image.shape[1]} x {image.shape[0]} pixels")
    return pixels


def _box(sides: Any) -> Box:
    """Returns the box of left, top, width and height as a file has them; ValueError or TypeError for anything else."""
    left, top, width, height = sides
    box = left, top, left + width, top + height
    if not all(math.isfinite(side) for side in box):
        raise ValueError(f"the box is {box}")
    return float(box[0]), float(box[1]), float(box[2]), float(box[3])


# readers of each layout


def _json(file: pathlib.Path) -> Any:
    return json.loads(read_bytes(file))


def _first(folder: pathlib.Path, *names: str) -> pathlib.Path | None:
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _all(folder: pathlib.Path, names: Mapping[str, Sequence[str]]) -> dict[str, pathlib.Path]:
    """Returns the file of each group, by one of its names; MissingData if the folder has some of them only."""
    files = {group: file for group, known in names.items() if (file := _first(folder, *known))}
    if files and (missing := [known[0] for group, known in names.items() if group not in files]):
        raise MissingData(f"{folder} has no {', '.join(missing)}, which belong to the set; download it again")
    return files


def _coco(folder: pathlib.Path) -> list[pathlib.Path]:
    """The folders in which images of COCO 2017 may be."""
    bases = [folder, folder / "images", folder.parent / "coco", folder.parent / "coco" / "images", folder.parent]
    return [place for base in bases for place in (base / "val2017", base)]


def _winoground(folder: pathlib.Path) -> Listing | None:
    file = _first(folder, "examples.jsonl", "data/examples.jsonl")
    if file is None:
        return None
    rows: list[Row] = []
    with reading(file, "Winoground's examples.jsonl"):
        for example in json_rows(file):
            captions = text_of(example, "caption_0"), text_of(example, "caption_1")
            rows.append(Row(Picture(f"{text_of(example, 'image_0')}.png"), captions))
            rows.append(Row(Picture(f"{text_of(example, 'image_1')}.png"), captions[::-1]))
    return rows, [file.parent / "images", folder / "images"]


def _in_data(name: str) -> list[str]:
    return [f"{name}.json", f"data/{name}.json"]


def _of_files(folder: pathlib.Path, names: Mapping[str, Sequence[str]], right: tuple[str, ...]) -> Listing | None:
    """Rows of files with a list of cases, or a mapping of them: filename, right captions and negative_caption."""
    files, rows = _all(folder, names), []
    for group, file in files.items():
        with reading(file, "a file of this set"):
            stored = _json(file)
            for case in stored.values() if isinstance(stored, dict) else stored:
                captions = *(text_of(case, key) for key in right), text_of(case, "negative_caption")
                rows.append(Row(Picture(text_of(case, "filename")), captions, len(right), group))
    return (rows, _coco(folder)) if files else None


def _mmvp_vlm(folder: pathlib.Path) -> Listing | None:
    """Pairs of rows (number, pattern, statement); both images are in the folder of the first one's pattern."""
    file = _first(folder, "Questions.csv")
    if file is None:
        return None
    rows: list[Row] = []
    with reading(file, "MMVP-VLM's Questions.csv"):
        lines = [line for line in csv.reader(io.StringIO(read_bytes(file).decode("utf-8-sig"))) if line][1:]
        for first, second in zip(lines[::2], lines[1::2], strict=True):
            captions = tuple(f"a photo of {text_of({'statement': line[2]}, 'statement')}" for line in (first, second))
            group = "_".join(first[1].lower().split())
            rows.append(Row(Picture(f"{first[1]}/{int(first[0])}.jpg"), captions, 1, group))
            rows.append(Row(Picture(f"{first[1]}/{int(second[0])}.jpg"), captions[::-1], 1, group))
    return rows, [folder / "MLLM_VLM Images", folder / "MMVP_VLM_Images"]


def _aro_relation(folder: pathlib.Path) -> Listing | None:
    rows = _visual_genome(folder / "visual_genome_relation.json", lambda case: text_of(case, "relation_name"))
    left_out = set(UNEVALUATED.read_text(encoding="utf-8").splitlines())
    return None if rows is None else ([row for row in rows if row.group not in left_out], [folder / "images"])


def _aro_attribution(folder: pathlib.Path) -> Listing | None:
    file = folder / "visual_genome_attribution.json"
    rows = _visual_genome(file, lambda case: "_".join(map(str, case["attributes"][:2])))
    sizes = Counter(row.group for row in rows or ())
    often = [row for row in rows or () if sizes[row.group] >= FEWEST_OF_PAIR]
    return None if rows is None else (often, [folder / "images"])


def _visual_genome(file: pathlib.Path, group: Callable[[Any], str]) -> list[Row] | None:
    if not file.is_file():
        return None
    rows: list[Row] = []
    with reading(file, "a file of ARO"):
        for case in _json(file):
            picture = Picture(text_of(case, "image_path"), _box([case[f"bbox_{side}"] for side in "xywh"]))
            captions = text_of(case, "true_caption"), text_of(case, "false_caption")
            rows.append(Row(picture, captions, 1, group(case)))
    return rows


def _fg_ovd(folder: pathlib.Path) -> Listing | None:
    files = _all(folder, {group: [f"{name}.json", f"benchmarks/{name}.json"] for group, name in FG_OVD.items()})
    rows: list[Row] = []
    for group, file in files.items():
        with reading(file, "a benchmark of FG-OVD"):
            rows += _boxes(_json(file), group)
    return (rows, _coco(folder)) if files else None


def _boxes(stored: Any, group: str) -> Iterator[Row]:
    paths = {image["id"]: text_of(image, "file_name") for image in stored["images"]}
    names = {category["id"]: text_of(category, "name") for category in stored["categories"]}
    for annotation in stored["annotations"]:
        if negatives := annotation["neg_category_ids"][:MOST_NEGATIVES]:
            captions = tuple(names[number] for number in (annotation["category_id"], *negatives))
            yield Row(Picture(paths[annotation["image_id"]], _box(annotation["bbox"])), captions, 1, group)


# parquet tables


def _caption_rows(file: pathlib.Path, most: int) -> Iterator[tuple[str, ...]]:
    """Yields the captions of each row, in batches: a row that repeats a long text takes a few bytes in the file."""
    with _parquet().ParquetFile(file, read_dictionary=list(ORDERS)) as table:
        if table.metadata.num_rows > most:
            raise ValueError(f"it has {table.metadata.num_rows:,} rows; a set has at most {MOST_ROWS:,}")
        groups = map(table.metadata.row_group, range(table.num_row_groups))
        chunks = [group.column(number) for group in groups for number in range(group.num_columns)]
        size = sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema in ORDERS)
        if size > MAX_BYTES:
            raise ValueError(f"its captions unpack to {size:,} bytes; a set has at most {MAX_BYTES:,}")
        for batch in table.iter_batches(batch_size=ROWS_AT_ONCE, columns=list(ORDERS)):
            for row in zip(*(_texts(batch.column(column), column) for column in ORDERS)):
                yield tuple(text_of(dict(zip(ORDERS, row)), column) for column in ORDERS)


def _texts(column: Any, name: str) -> list[str | None]:
    """Returns the cells of a column of texts, equal ones as one object; ValueError for one above MOST_CHARACTERS."""
    if not hasattr(column, "dictionary"):
        raise ValueError(f"{name} is {column.type}, not a text")
    texts = column.dictionary.to_pylist()
    if (longest := max(map(len, filter(None, texts)), default=0)) > MOST_CHARACTERS:
        raise ValueError(f"{name} has a text of {longest:,} characters; a caption has at most {MOST_CHARACTERS:,}")
    return [None if index is None else texts[index] for index in column.indices.to_pylist()]


def _parquet() -> Any:
    return extras.load("pyarrow.parquet", "parquet tables need pyarrow", "data", error=MissingData)


class TableImages:
    """A source of the images in the column "images" of parquet tables; the last two row groups are kept."""

    def __init__(self, files: Sequence[pathlib.Path]):
        self.places: list[tuple[pathlib.Path, int, int]] = []  # file, row group, and row in it
        for file in files:
            stored = _parquet().read_metadata(file)
            for group in range(stored.num_row_groups):
                self.places += [(file, group, row) for row in range(stored.row_group(group).num_rows)]
        self.lock, self.images_of = threading.Lock(), functools.lru_cache(2)(_images_of)

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Example:
        file, group, row = self.places[index]
        with self.lock:
            image = self.images_of(file, group)[row].as_py()
        image = image[0] if isinstance(image, list) and image else image
        if not isinstance(image, dict) or not isinstance(image.get("bytes"), bytes):
            raise BadRecord(f"{file.name}: row {row} of group {group} has no image")
        return {"image": image["bytes"], "captions": (), "label": -1, "key": f"{file.name}:{group}:{row}"}


def _images_of(file: pathlib.Path, group: int) -> Any:
    """Returns the images of a row group as a pyarrow column, in which equal bytes are stored once, as in the file."""
    with reading(file, "a table with images"):
        schema = _parquet().read_metadata(file).schema
        paths = [schema.column(number).path for number in range(len(schema.names))]
        with _parquet().ParquetFile(file, read_dictionary=paths) as table:
            return table.read_row_group(group, columns=["images"]).column("images")


COCO = "and the images of COCO 2017 in {folder}/coco/val2017"
ARO = "https://github.com/mertyg/vision-language-models-are-bows: its JSON files in {folder}/aro, images in aro/images"
HUB = "hf download {} --repo-type dataset --local-dir {{folder}}/{}"
CHOICES = {
    "winoground": Layout(
        _winoground,
        ("winoground",),
        f"{HUB.format('facebook/winoground', 'winoground')} (accept its terms first); unpack data/images.zip there",
        PAIRS,
        800,
    ),
    "sugarcrepe": Layout(
        functools.partial(_of_files, names={name: _in_data(name) for name in SUGARCREPE}, right=("caption",)),
        ("sugarcrepe", "sugar-crepe"),
        f"https://github.com/RAIVNLab/sugar-crepe: data/*.json in {{folder}}/sugarcrepe, {COCO}",
    ),
    "sugarcrepe_pp": Layout(
        functools.partial(
            _of_files,
            names={name: _in_data(name) + _in_data(longer) for name, longer in SUGARCREPE_PP.items()},
            right=("caption", "caption2"),
        ),
        ("sugarcrepe_pp", "scpp", "SugarCrepe_pp"),
        f"https://github.com/Sri-Harsha/scpp: data/*.json in {{folder}}/sugarcrepe_pp, {COCO}",
        num=4_757,
    ),
    "mmvp_vlm": Layout(
        _mmvp_vlm, ("mmvp_vlm", "MMVP_VLM"), HUB.format("MMVP/MMVP_VLM", "mmvp_vlm"), PAIRED_IMAGES, 270
    ),
    "aro_relation": Layout(_aro_relation, ("aro",), ARO, MEAN_OF_GROUPS),
    "aro_attribution": Layout(_aro_attribution, ("aro",), ARO, MEAN_OF_GROUPS),
    "aro_coco_order": Layout(
        None, ("aro_coco_order", "ARO-COCO-order"), HUB.format("gowitheflow/ARO-COCO-order", "aro_coco_order")
    ),
    "aro_flickr_order": Layout(
        None, ("aro_flickr_order", "ARO-Flickr-Order"), HUB.format("gowitheflow/ARO-Flickr-Order", "aro_flickr_order")
    ),
    "fg_ovd": Layout(
        _fg_ovd,
        ("fg_ovd", "FG-OVD"),
        f"https://github.com/lorebianchi98/FG-OVD: benchmarks/*.json in {{folder}}/fg_ovd, {COCO}",
    ),
}


def ready_choices(data_dir: str | pathlib.Path) -> list[Readiness]:
    """Returns for every set of choices whether it is present and has its published size, as `opening.ready`."""
    rows = []
    for name, layout in CHOICES.items():
        here = [pathlib.Path(data_dir) / folder for folder in layout.folders]
        get, sizes = layout.get.replace("{folder}", str(data_dir)), {} if layout.num is None else {layout.num: ""}
        count = lambda name=name: len(open_choices(name, data_dir).choices)  # noqa: E731
        rows.append(readiness(name, here, get, count, sizes, layout.num or 0, "choices"))
    return rows
