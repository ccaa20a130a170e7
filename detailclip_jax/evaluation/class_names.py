"""Matching of classes by name, never by position: every publisher of a data set has its own order and spelling."""

import difflib
import re
import unicodedata
from collections.abc import Iterator, Sequence

Names = Sequence[Sequence[str]]
MAX_LISTED = 10


def plain(name: str) -> str:
    """What is left of a name when spelling does not count.

    Letters and digits in lower case, without accents; CUB's number in front ("001.Laysan_Albatross"), SUN397's
    letter ("/a/abbey") and zeros in front of a number are dropped.
    """
    text = unicodedata.normalize("NFKD", name).lower()
    text = re.sub(r"^(\d+\.(?=[^\W\d])|/[a-z]/)", "", text)
    return re.sub(r"^0+(?=\d+$)", "", "".join(letter for letter in text if letter.isalnum()))


def match(classes: Sequence[str], known: Names) -> list[int]:
    """For each class of a data set the index of the known class that has its name among its names.

        match(["american_bulldog", "Abyssinian"], [["Abyssinian"], ["American bulldog"]]) == [1, 0]

    Where known classes share a name (ImageNet has two missiles), the first of the set's takes the first.  Raises
    ValueError that lists classes without a known one, with the nearest names, and known ones that the set lacks.
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
    """What is wrong about a matching, and the way out."""
    if unmatched:
        yield f"{len(unmatched)} classes of the data have no known name: " + listed(
            [near(n, lacking) for n in unmatched]
        )
    if lacking:
        yield f"{len(lacking)} known classes are missing in the data: {listed([repr(name) for name in lacking])}"
    if twice := [name for name, index in zip(classes, found) if index is not None and found.count(index) > 1]:
        yield f"classes of the data that mean the same: {listed([repr(name) for name in twice])}"
    yield 'rename the folders or lines of classnames.txt, or evaluate "folder:PATH" over its own classes'


def near(name: str, candidates: Sequence[str]) -> str:
    """The name with up to three candidates that look like it."""
    by_plain = {plain(candidate): candidate for candidate in candidates}
    alike = difflib.get_close_matches(plain(name), by_plain, n=3, cutoff=0.5)
    return repr(name) + (f" (nearest: {', '.join(repr(by_plain[key]) for key in alike)})" if alike else "")


def listed(items: Sequence[str]) -> str:
    """The first few, and how many more."""
    more = len(items) - MAX_LISTED
    return ", ".join(items[:MAX_LISTED]) + (f" and {more} more" if more > 0 else "")
