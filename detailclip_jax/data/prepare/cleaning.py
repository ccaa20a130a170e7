"""What is done to captions before they are kept."""

import re
import urllib.parse
from collections.abc import Callable, Mapping
from types import MappingProxyType

TAGS = re.compile(r"<a.*?>|</a>|<b>|</b>|<i>|</i>")
URLS = re.compile(r"(?:http|www)\S+")


def slip(text: str) -> str:
    """A title or description of YFCC100M's metadata as SLIP cleans it.

    Per cent escapes are decoded, then every "+" becomes a space (an escaped one too), then the tags <a ...>, <b>,
    <i> and their ends go, then everything from "http" or "www" up to the next white space.  Facts: SLIP's published
    make_dataset.py (arXiv 2112.12750).

        slip("Rio+%26+%3Cb%3Eme%3C%2Fb%3E+http%3A%2F%2Fx.org%2Fa+2010") == "Rio & me  2010"
    """
    text = urllib.parse.unquote(text).replace("+", " ")
    return URLS.sub("", TAGS.sub("", text))


def none(text: str) -> str:
    """The text as it is."""
    return text


CLEANING: Mapping[str, Callable[[str], str]] = MappingProxyType({"none": none, "slip": slip})
