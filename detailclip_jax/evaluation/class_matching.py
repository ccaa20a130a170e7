"""Matches classes by name, not by position: publishers of a data set differ in order and spelling of the classes."""

import difflib
import re
import unicodedata
from collections.abc import Iterator, Sequence

Names = Sequence[Sequence[str]]
MAX_LISTED = 10


def plain(name: str) -> str:
    """Normalises a class name, so that spelling variants compare equal.

    Keeps letters and digits, in lower case and without accents. Drops CUB's leading number ("001.Laysan_Albatross"),
    SUN397's leading letter ("/a/abbey") and leading zeros of a number.
    """
    text = unicodedata.normalize("NFKD", name).lower()
    text = re.sub(r"^(\d+\.(?=[^\W\d])|/[a-z]/)", "", text)
    return re.sub(r"^0+(?=\d+$)", "", "".join(letter for letter in text if letter.isalnum()))


def match(classes: Sequence[str], known: Names) -> list[int]:
    """For each class of a data set, the index of the known class that lists its name.

        match(["american_bulldog", "Abyssinian"], [["Abyssinian"], ["American bulldog"]]) == [1, 0]

    If known classes share a name (ImageNet has two missiles), the data set's first such class gets the first of them.
    Raises ValueError unless the match is one to one; the message lists classes without a known name, with the nearest
    names, and known classes that the set lacks.
    """
    places: dict[str, list[int]] = {}
    for index, names in enumerate(known):
        for name in dict.fromkeys(map(plain, names)):
            places.setdefault(name, []).append(index)
    found = [places[plain(name)].pop(0) if places.get(plain(name)) else None for name in classes]
    unmatched = [name for name, index in zip(classes, found) if index is None]
    lacking = [names[0] for index, names in enumerate(known) if index not in found]
    if unmatched or lacking or len(set(found)) < len(found):
        raise ValueError("; ".join(complaints(unmatched, lacking, classes, found)))
    return [index for index in found if index is not None]


def complaints(
    unmatched: Sequence[str], lacking: Sequence[str], classes: Sequence[str], found: Sequence[int | None]
) -> Iterator[str]:
    """Yields the error messages of a failed match, and what the user can do."""
    if unmatched:
        yield f"{len(unmatched)} classes of the data have an unknown name: " + listed(
            [near(n, lacking) for n in unmatched]
        )
    if lacking:
        yield f"{len(lacking)} known classes are not in the data: {listed([repr(name) for name in lacking])}"
    if twice := [name for name, index in zip(classes, found) if index is not None and found.count(index) > 1]:
        yield f"several classes of the data match the same known class: {listed([repr(name) for name in twice])}"
    yield 'rename the folders or the lines of classnames.txt, or evaluate "folder:PATH" with its own class names'


def near(name: str, candidates: Sequence[str]) -> str:
    """The name, quoted, with up to three similar candidates."""
    by_plain = {plain(candidate): candidate for candidate in candidates}
    alike = difflib.get_close_matches(plain(name), by_plain, n=3, cutoff=0.5)
    return repr(name) + (f" (nearest: {', '.join(repr(by_plain[key]) for key in alike)})" if alike else "")


def listed(items: Sequence[str]) -> str:
    """The first MAX_LISTED items, comma-separated, and the number of the others."""
    more = len(items) - MAX_LISTED
    return ", ".join(items[:MAX_LISTED]) + (f" and {more} more" if more > 0 else "")
