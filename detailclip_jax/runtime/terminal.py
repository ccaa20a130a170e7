"""Escaping of control characters in printed text: file names, captions and labels may contain terminal commands.

ESC begins commands that clear the screen or change the window's title, a carriage return overwrites the line, and bidi
overrides change the visible order of a name.  `printable` escapes them.  All text for the screen, the log or a report
passes through it: in `complain`, `progress.Console`, `files.replace_text`, and a filter of absl's log.
"""

import logging as standard_logging
import re
import sys
from decimal import Decimal

from absl import logging

# C0, DEL and C1; bidi marks, overrides and isolates (Unicode 9.2 of UAX 9), with the deprecated ones that follow them;
# line and paragraph separators; halves of surrogate pairs, which represent bytes of names that are not valid UTF-8
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f\ufeff\ud800-\udfff]")
LINES = "\n\t"  # characters that messages and reports of several lines keep


def printable(text: str, keep: str = "") -> str:
    """Replaces control characters by escapes such as `\\x1b` or `\\u202e`; characters in `keep` stay.

    printable(chr(27) + "[2J.jpg") == r"\\x1b[2J.jpg"
    """

    def escape(match: re.Match[str]) -> str:
        number = ord(match[0])
        if match[0] in keep:
            return match[0]
        return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}"

    return _CONTROL.sub(escape, text)


def counted(number: int, noun: str, plural: str = "") -> str:
    """A number with its noun, singular or plural: counted(1, "step") == "1 step", else "2,400 steps"."""
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def plain(number: float) -> str:
    """A number with three significant digits and no exponent: plain(4.77e-7) == "0.000000477"."""
    return format(Decimal(f"{number:.3g}"), "f")


def json_escaped(text: str) -> str:
    """Escapes control characters in JSON text; the values stay the same, because only strings can contain them.

    The line breaks and tabs of the JSON text itself are kept.
    """
    return _CONTROL.sub(lambda match: match[0] if match[0] in LINES else f"\\u{ord(match[0]):04x}", text)


def complain(text: str) -> None:
    """Prints a message on standard error, with control characters escaped; it may have several lines."""
    print(printable(text, LINES), file=sys.stderr, flush=True)


class _Escaping(standard_logging.Filter):
    """A log filter that escapes control characters before any handler writes the record."""

    def filter(self, record: standard_logging.LogRecord) -> bool:
        """Escapes the record's message; returns True, so that every record is kept."""
        record.msg, record.args = printable(record.getMessage(), LINES), ()
        return True


logging.get_absl_logger().addFilter(_Escaping())
