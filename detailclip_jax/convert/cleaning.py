"""Functions that clean captions."""

import re
import urllib.parse
from collections.abc import Callable, Mapping
from types import MappingProxyType

TAGS = ("</a", "<b", "</b", "<i", "</i")  # without the final ">"
URLS = re.compile(r"(?:http|www)\S+")


def slip(text: str) -> str:
    """Cleans a title or description of YFCC100M's metadata as SLIP does.

    Percent escapes are decoded; then every "+" becomes a space (also an escaped one); then the tags <a ...>, <b>, <i>
    and their end tags are removed; then everything from "http" or "www" to the next white space.  Source: SLIP's
    published make_dataset.py (arXiv 2112.12750).

        slip("Rio+%26+%3Cb%3Eme%3C%2Fb%3E+http%3A%2F%2Fx.org%2Fa+2010") == "Rio & me  2010"
    """
    text = urllib.parse.unquote(text).replace("+", " ")
    return URLS.sub("", remove_tags(text))


def remove_tags(text: str) -> str:
    """Removes what the regular expression `<a.*?>|</a>|<b>|</b>|<i>|</i>` matches, in linear time.

    The expression searches from each "<a" for a ">" on the same line, which takes quadratic time if there is none.
    Every match ends at the first ">" after its start, so the text before each ">" can be processed separately.
    """
    *parts, rest = text.split(">")
    kept = []
    for part in parts:
        at = part.find("<a", part.rfind("\n") + 1)
        tag = next((tag for tag in TAGS if part.endswith(tag)), None)
        if at >= 0:
            kept.append(part[:at])
        else:
            kept.append(f"{part}>" if tag is None else part.removesuffix(tag))
    return "".join(kept) + rest


CLEANING: Mapping[str, Callable[[str], str]] = MappingProxyType({"none": str, "slip": slip})
