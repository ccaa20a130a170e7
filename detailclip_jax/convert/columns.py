"""Chooses which columns of a table hold the image, the captions, the key and the label."""

import contextlib
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from detailclip_jax.convert.examples import MAX_LABEL, Named, Rejected
from detailclip_jax.convert.job import Options
from detailclip_jax.convert.regions import FIELDS

IMAGE = ("image", "jpg", "filepath", "file_path", "image_path", "path", "filename", "file_name", "image_name")
CAPTION = ("caption", "captions", "text", "txt", "sentence", "sentences")
PAIR = ("title", "description")
KEY = ("key", "id", "image_id", "photoid")
LABEL = ("label", "cls", "class")
MATCHED_BY = ("key", "path", "file")  # what every source knows of an image; other names are fields and columns
TEXTS = ("raw", "text")  # of a dict in a cell


class Columns(NamedTuple):
    """Column names; "" if the table has no key or label.  `match` is by what captions are joined, see `match_of`."""

    image: str
    captions: tuple[str, ...]
    key: str
    label: str
    match: str = ""

    @property
    def wanted(self) -> tuple[str, ...]:
        """All columns to read."""
        match = "" if self.match in MATCHED_BY else self.match
        return tuple(dict.fromkeys(name for name in (self.image, *self.captions, self.key, self.label, match) if name))


def sides(text: str) -> tuple[str, str]:
    """Splits KEY=COLUMN; without "=" both are the same.  sides("url=Image Path") == ("url", "Image Path")."""
    name, _, column = text.partition("=")
    return name, column or name


def choose(there: Sequence[str], options: Options, where: str) -> Columns:
    """Returns the columns that the options name, else those with the usual names.

    Raises ValueError, with the table's columns, if one is missing or there more than once, and if a table without
    labels has other columns than those of boxes, but none with a usual name of captions: one of them probably holds
    the captions.
    """
    image = _one(there, options.image_column, IMAGE)
    captions = options.caption_columns or usual_captions(there)
    key, label = _one(there, options.key_column, KEY), _one(there, options.label_column, LABEL)
    chosen = Columns(image or "", captions, key or "", label or "", options.joined_by)
    missing = [name for name in chosen.wanted if name not in there]
    if missing or not image:
        what = f"no column {', '.join(missing)}" if missing else f"none of the columns {', '.join(IMAGE)}"
        raise ValueError(
            f"{where} has {what}; its columns are {', '.join(map(str, there))}.  "
            "Name the columns with --image-column, --caption-column, --key-column and --label-column"
        )
    if repeated := next((name for name in chosen.wanted if there.count(name) > 1), ""):
        raise ValueError(
            f"{where} has the column {repeated} more than once, and only one of them would be read; rename them "
            f"{repeated}1, {repeated}2 and so on, and for captions give --caption-column for each"
        )
    others = [name for name in there if name and name not in (*chosen.wanted, *FIELDS)]
    if others and not (captions or label or options.captions):
        raise ValueError(
            f"{where} has none of the caption columns {', '.join((*PAIR, *CAPTION))}; its columns are "
            f"{', '.join(map(str, there))}.  Name those of captions with --caption-column; for images without captions "
            "remove the other columns"
        )
    return chosen


def usual_captions(there: Collection[str]) -> tuple[str, ...]:
    """Returns PAIR if both are there, else the first of CAPTION, else the one of PAIR that is there, else nothing."""
    pair = tuple(name for name in PAIR if name in there)
    return pair if pair == PAIR else tuple(name for name in CAPTION if name in there)[:1] or pair


def _one(there: Sequence[str], option: str, usual: Sequence[str]) -> str | None:
    return option or next((name for name in usual if name in there), None)


class WrongColumns(ValueError):
    """Raised if a table lacks columns, or has one of them more than once; the message has the table's columns."""


def require(there: Sequence[str], wanted: Sequence[str], where: str) -> None:
    """Raises WrongColumns unless each of the wanted columns is there once."""
    columns = ", ".join(map(str, there)) or "none"
    if missing := [name for name in wanted if name not in there]:
        raise WrongColumns(f"{where} has no column {', '.join(missing)}; its columns are {columns}")
    if repeated := next((name for name in wanted if there.count(name) > 1), ""):
        raise WrongColumns(f"{where} has the column {repeated} more than once; rename them; its columns are {columns}")


def match_of(by: str, key: str, path: str, fields: Mapping[str, Any]) -> str:
    """Returns the text by which captions are joined to an image (`joined_captions`); "" without one.

    `by` is "key", "path", as the source names the file of the image, "file", the same without folders, or a field.
    """
    if by == "key":
        return key
    if by in MATCHED_BY:
        return path if by == "path" else path.rpartition("/")[2]
    return key_text(fields.get(by))


def captions_in(values: Mapping[str, Any], names: Sequence[str]) -> tuple[tuple[str, ...], Named]:
    """Returns the unnamed and the named captions; a single column that holds a list gives unnamed ones."""
    named = {name: texts_in(values.get(name)) for name in names}
    first = next(iter(named.values()), "")
    return (first, {}) if len(named) == 1 and isinstance(first, tuple) else ((), named)


def texts_in(value: Any) -> str | tuple[str, ...]:
    """Returns a table cell as text, or as several if it holds a list; Rejected as in `text_of`."""
    return tuple(map(text_of, value)) if isinstance(value, list | tuple) else text_of(value)


def text_of(value: Any) -> str:
    """Returns a table cell as text; "" for None and for NaN, which tools write for a missing text.

    A dict gives its "raw" or "text" (as in Karpathy's sentences).  Rejected for a list, and for a dict without a text.
    """
    if isinstance(value, dict) and not value.keys().isdisjoint(TEXTS):
        value = value.get("raw", value.get("text"))
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, list | tuple | dict):
        raise Rejected(f"bad text: {value!r:.40} is a {type(value).__name__}; a text is required")
    return "" if value is None or (isinstance(value, float) and math.isnan(value)) else str(value)


def key_text(value: Any) -> str:
    """Returns a table cell as a key, as `text_of`; 1.0 is "1", because pandas stores whole numbers as 1.0 beside gaps.

    Rejected for a float of 2^53 and more, which has lost the last digits of a number.
    """
    if isinstance(value, float) and value.is_integer():
        if abs(value) >= 2**53:
            raise Rejected(f"bad key: {value!r} is a float that has lost digits; store the column as integers or texts")
        return str(int(value))
    return text_of(value)


def key_of(values: Mapping[str, Any], chosen: Columns, place: str) -> str:
    """Returns the key of a row: its cell in the column of keys, else `place`; Rejected as in `text_of`."""
    return (key_text(values.get(chosen.key)) if chosen.key else "") or place


def cell_label(value: Any) -> int:
    """Returns a table cell as a label, -1 if it is empty; Rejected as in `number_of`."""
    return -1 if value is None or value == "" else number_of(value)


def number_of(value: Any) -> int:
    """Returns a label, a number or its text, as an integer; Rejected if it is not a whole number that int32 holds.

    "3.0" is 3, because pandas writes whole numbers so beside gaps.
    """
    with contextlib.suppress(TypeError, ValueError):  # a list, a text
        number = float(value) if isinstance(value, str | bytes) else value
        if -1 <= number <= MAX_LABEL and number == int(number):
            return int(number)
    raise Rejected(
        f"bad label: {value!r:.40} is not a whole number from -1 to {MAX_LABEL}; if it is no label, rename its column "
        "or member"
    )
