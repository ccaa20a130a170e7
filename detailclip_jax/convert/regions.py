"""Boxes with phrases, and false texts, of an example: from the fields of its source to those of its record.

| fields of the source | layout |
|---|---|
| `boxes`, `phrases`, `phrase_negatives`, `negatives` | a record's; boxes in pixels, or all in shares of the sides |
| `noun_chunks`, `ref_exps` | GRIT: [start, end, x0, y0, x1, y1, score] in shares; the phrase is `caption`[start:end] |
| `bbox_info` | FineHARD: [{"bbox": [x0, y0, x1, y1, score] in shares, "short_expr", "long_expr", "short_expr_negs"}] |

A record has boxes in pixels of its image as it is stored, upright.
"""

import collections
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from detailclip_jax.convert.examples import Rejected, several, valid_text
from detailclip_jax.data.tokenizer import MAX_CHARACTERS

OF_BOXES = ("boxes", "phrases", "phrase_negatives")
RECORD_FIELDS = (*OF_BOXES, "negatives")
GRIT = ("ref_exps", "noun_chunks")
FINEHARD = "bbox_info"
FIELDS = (*RECORD_FIELDS, *GRIT, FINEHARD)
LEAST_INSIDE = 0.9  # of a box's area: in the image
ROUNDING = 1e-3  # by which a share may exceed 1
OUTSIDE, EMPTY, NO_PHRASE, CROWD = "outside the image", "empty", "without a phrase", "crowds"
OTHER_FORM = {name: f"fields {name!r} of another form" for name in FIELDS}

REASONS = (OUTSIDE, EMPTY, NO_PHRASE, CROWD)

Box = tuple[float, float, float, float]  # xyxy
Size = tuple[int, int]  # width and height


class Region(NamedTuple):
    """A box with its phrases, of which training draws one, and false phrases.

    relative: the box is in shares of the image's sides.
    dropped: why it is not used, if its source says so; such a region may have no box.
    """

    box: Sequence[float]
    phrases: Sequence[str] = ()
    negatives: Sequence[str] = ()
    relative: bool = False
    dropped: str = ""


def read(values: Mapping[str, Any]) -> tuple[tuple[Region, ...], tuple[str, ...]]:
    """Returns the regions and the false captions in the fields of an example; Rejected for boxes that are wrong.

    `boxes` and `phrases` are read only together; boxes alone are dropped, as those without a phrase. Other sources use
    these names too: for a field of another form there is a region without a box, which `of_record` counts as dropped.
    """
    there = [name for name in FIELDS if _is_there(values.get(name))]
    without_phrases = values["boxes"] if "boxes" in there and "phrases" not in there else []
    if not {"boxes", "phrases"} <= {*there}:
        there = [name for name in there if name not in OF_BOXES]
    ignored = [name for name in there if not FORMS[name](values[name])]
    if {"boxes", "phrases"} & {*ignored}:
        there = [name for name in there if name not in OF_BOXES]
    cells = {name: values[name] for name in there if name not in ignored}
    try:
        regions = [*_listed(cells), *_grit(cells, values.get("caption")), *_finehard(cells.get(FINEHARD, ()))]
        if not all(len(region.box) == 4 and all(map(math.isfinite, region.box)) for region in regions):
            raise ValueError("a box has four finite numbers")
    except (TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
        raise Rejected(
            f"bad boxes: {', '.join(cells)} are not in a known form ({type(error).__name__}: {error})"
        ) from error
    dropped = [Region((), dropped=OTHER_FORM[name]) for name in ignored]
    if FORMS["boxes"](without_phrases):
        dropped += [Region((), dropped=NO_PHRASE)] * len(without_phrases)
    return (*regions, *dropped), _texts(cells.get("negatives"))


def names_in(there: Sequence[str]) -> tuple[str, ...]:
    """Returns the columns of a table that `read` reads."""
    names = tuple(name for name in FIELDS if name in there)
    return (*names, "caption") if {*names} & {*GRIT} and "caption" in there else names


def _is_there(value: Any) -> bool:
    return value is not None and not (isinstance(value, float) and math.isnan(value))


def _is_text(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _is_list(value: Any, is_item: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and all(map(is_item, value))


def _is_texts(value: Any) -> bool:
    """Whether a value is a text, or a list of texts; each may be missing."""
    return _is_text(value) or _is_list(value, _is_text)


def _is_grit(value: Any) -> bool:
    """Whether a value is a list of lists of at least [start, end, x0, y0, x1, y1]."""
    is_number = lambda each: isinstance(each, (int, float))  # noqa: E731
    return _is_list(value, lambda each: _is_list(each, is_number) and len(each) >= 6)


FORMS: Mapping[str, Callable[[Any], bool]] = {  # whether a field is of these layouts; its boxes may still be wrong
    "boxes": lambda value: _is_list(value, lambda box: isinstance(box, list)),
    "phrases": lambda value: _is_list(value, _is_texts),
    "phrase_negatives": lambda value: _is_list(value, _is_texts),
    "negatives": _is_texts,
    "noun_chunks": _is_grit,
    "ref_exps": _is_grit,
    FINEHARD: lambda value: _is_list(value, lambda info: isinstance(info, Mapping) and "bbox" in info),
}


def _listed(cells: Mapping[str, Any]) -> Iterable[Region]:
    boxes, phrases = cells.get("boxes", ()), cells.get("phrases", ())
    negatives = cells.get("phrase_negatives") or [()] * len(boxes)
    numbers = [[float(number) for number in box] for box in boxes]
    relative = max(itertools.chain(*numbers), default=0.0) <= 1 + ROUNDING
    if not len(boxes) == len(phrases) == len(negatives):
        raise ValueError(f"{len(boxes)} boxes, {len(phrases)} phrases, {len(negatives)} lists of false phrases")
    for box, phrase, false in zip(numbers, phrases, negatives):
        yield Region(box, _texts(phrase), _texts(false), relative)


def _grit(cells: Mapping[str, Any], caption: Any) -> Iterable[Region]:
    """GRIT's referring expressions and noun chunks; those of one box are phrases of one region."""
    by_box: dict[Box, list[str]] = {}
    for start, end, x0, y0, x1, y1, *_ in itertools.chain.from_iterable(cells.get(name, ()) for name in GRIT):
        text = caption[int(start) : int(end)]
        phrases = by_box.setdefault((float(x0), float(y0), float(x1), float(y1)), [])
        phrases += [text] if text not in phrases else []
    return [Region(box, _texts(phrases), relative=True) for box, phrases in by_box.items()]


def _finehard(infos: Iterable[Mapping[str, Any]]) -> Iterable[Region]:
    for info in infos:
        false = info.get("short_expr_negs") or ()
        false = list(false.values()) if isinstance(false, Mapping) else false
        phrases = [info.get(name) or "" for name in ("short_expr", "long_expr")]
        yield Region([float(number) for number in info["bbox"][:4]], _texts(phrases), _texts(false), relative=True)


def _texts(value: Any) -> tuple[str, ...]:
    """The texts of a field, without blank ones; TypeError for another type."""
    captions = tuple(several(value or ()))
    if isinstance(value, Mapping) or not all(text is None or isinstance(text, str) for text in captions):
        raise TypeError(f"{value!r:.40} is no list of texts")
    return tuple(text for text in captions if text and text.strip())


def of_record(
    regions: Iterable[Region], negatives: Sequence[str], whole: Size, kept: Size
) -> tuple[dict[str, Any], dict[str, int]]:
    """Returns the fields of a record, and the counts of boxes that are kept and dropped.

    whole: width and height of the image in its source, upright; kept: those in the record.
    """
    counts: collections.Counter[str] = collections.Counter()
    boxes, phrases, false = [], [], []
    for region in regions:
        box, why = _placed(region, whole, kept)
        counts[why or "boxes"] += 1
        if box:
            boxes.append(list(box))
            phrases.append([_short(text) for text in region.phrases])
            false.append([_short(text) for text in region.negatives])
    fields: dict[str, Any] = {}
    if boxes:
        fields = {"boxes": boxes, "phrases": [each[0] if len(each) == 1 else each for each in phrases]}
        fields |= {"phrase_negatives": false} if any(false) else {}
    if negatives:
        fields["negatives"] = [_short(text) for text in negatives]
        counts["false captions"] += len(negatives)
    counts["images with boxes"] += bool(boxes)
    return fields, {name: count for name, count in counts.items() if count}


def _placed(region: Region, whole: Size, kept: Size) -> tuple[Box | None, str]:
    """Returns a box in pixels of the kept image, cut to it; or None, and why it is dropped."""
    if region.dropped:
        return None, region.dropped
    if not region.phrases:
        return None, NO_PHRASE
    scale = kept if region.relative else (kept[0] / whole[0], kept[1] / whole[1])
    x0, y0, x1, y1 = (number * scale[at % 2] for at, number in enumerate(region.box))
    if x1 <= x0 or y1 <= y0:
        return None, EMPTY
    cut = max(x0, 0.0), max(y0, 0.0), min(x1, float(kept[0])), min(y1, float(kept[1]))
    inside = max(cut[2] - cut[0], 0) * max(cut[3] - cut[1], 0)
    return (cut, "") if inside >= LEAST_INSIDE * (x1 - x0) * (y1 - y0) else (None, OUTSIDE)


def _short(text: str) -> str:
    return valid_text(text[:MAX_CHARACTERS])


def summary(counts: Mapping[str, int]) -> str:
    """Returns "1,200 boxes of 400 images; dropped: 3 outside the image, 1 empty", and the number of false captions."""
    dropped = [f"{counts[why]:,} {why}" for why in (*REASONS, *OTHER_FORM.values()) if counts.get(why)]
    texts = f"; {counts['false captions']:,} false captions" if counts.get("false captions") else ""
    kept = f"{counts.get('boxes', 0):,} boxes of {counts.get('images with boxes', 0):,} images"
    return f"{kept}; dropped: {', '.join(dropped) or 'none'}{texts}"
