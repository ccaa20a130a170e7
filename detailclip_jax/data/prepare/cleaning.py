"""What is done to captions before they are kept."""

import re
import urllib.parse
from collections.abc import Callable, Mapping
from types import MappingProxyType

TAGS = ("</a", "<b", "</b", "<i", "</i")  # without their ">"
URLS = re.compile(r"(?:http|www)\S+")


def slip(text: str) -> str:
    """A title or description of YFCC100M's metadata as SLIP cleans it.

    Per cent escapes are decoded, then every "+" becomes a space (an escaped one too), then the tags <a ...>, <b>,
    <i> and their ends go, then everything from "http" or "www" up to the next white space.  Facts: SLIP's published
    make_dataset.py (arXiv 2112.12750).

        slip("Rio+%26+%3Cb%3Eme%3C%2Fb%3E+http%3A%2F%2Fx.org%2Fa+2010") == "Rio & me  2010"
    """
    text = urllib.parse.unquote(text).replace("+", " ")
    return URLS.sub("", without_tags(text))


def without_tags(text: str) -> str:
    """The text without what the regular expression `<a.*?>|</a>|<b>|</b>|<i>|</i>` matches, in linear time.

    That expression looks, from each "<a", for a ">" in the same line, which costs the square of the length where there
    is none.  Every match ends at the first ">" behind its beginning, so what stands before a ">" is judged alone.
    """
    *parts, rest = text.split(">")
    return "".join(map(_without_tag, parts)) + rest


def _without_tag(part: str) -> str:
    """A part of the text up to a ">", which is left out here, without the tag that this may end."""
    at = part.find("<a", part.rfind("\n") + 1)
    if at >= 0:
        return part[:at]
    return next((part.removesuffix(tag) for tag in TAGS if part.endswith(tag)), f"{part}>")


def none(text: str) -> str:
    """The text as it is."""
    return text


CLEANING: Mapping[str, Callable[[str], str]] = MappingProxyType({"none": none, "slip": slip})
