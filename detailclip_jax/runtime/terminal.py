"""Text on its way to people: names of files, captions and labels may hold what a terminal would obey.

ESC begins commands that clear the screen or change the window's title, a carriage return overwrites the line, and bidi
overrides show a name in another order than it has.  `printable` writes them as escapes; whatever reaches the screen,
the log, or a report goes through it: `complain`, `progress.Console`, `files.replace_text`, and a filter of absl's log.
"""

import logging as standard_logging
import re
import sys

from absl import logging

# C0, DEL and C1; marks, overrides and isolates of bidi (Unicode 9.2 of UAX 9) with the deprecated ones behind them;
# line and paragraph separators; halves of surrogate pairs, which stand for bytes of names that are no UTF-8
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f\ufeff\ud800-\udfff]")
LINES = "\n\t"  # what messages and reports of several lines keep


def printable(text: str, keep: str = "") -> str:
    """The text with control characters as escapes, `\\x1b` or `\\u202e`; those in `keep` stay.

    printable(chr(27) + "[2J.jpg") == r"\\x1b[2J.jpg"
    """
    return _CONTROL.sub(lambda found: found[0] if found[0] in keep else _escaped(found[0]), text)


def _escaped(character: str) -> str:
    number = ord(character)
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}"


def json_escaped(text: str) -> str:
    """The same of a text of JSON, whose values stay: in it all of them stand in strings, but for its own line ends."""
    return _CONTROL.sub(lambda found: found[0] if found[0] in LINES else f"\\u{ord(found[0]):04x}", text)


def complain(text: str) -> None:
    """A message on standard error, where several lines may be meant."""
    print(printable(text, LINES), file=sys.stderr, flush=True)


class _Escaping(standard_logging.Filter):
    """Changes records before any handler, ours or another program's, writes them."""

    def filter(self, record: standard_logging.LogRecord) -> bool:
        """Keeps every record."""
        record.msg, record.args = printable(record.getMessage(), LINES), ()
        return True


logging.get_absl_logger().addFilter(_Escaping())
