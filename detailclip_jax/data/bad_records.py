"""Records that cannot be read: counted, named once, listed in a file, and the end of a run where they are too many."""

import os
import pathlib
from collections.abc import Sequence

from absl import logging

from detailclip_jax.runtime.terminal import printable

MIN_SEEN = 100  # records before the share of bad ones is judged
MAX_SHOWN = 20  # in the log, and in the message of an error


class TooManyBadRecords(RuntimeError):
    """More unreadable records than allowed; `records` are their keys with the reasons, the message has 20.

    file: where all of them are listed, if they are.
    """

    def __init__(self, message: str, records: Sequence[str] = (), file: str | os.PathLike = ""):
        more = [f"and {len(records) - MAX_SHOWN} more"] if len(records) > MAX_SHOWN else []
        listed = [f"all of them are listed in {file}"] if file else []
        super().__init__("\n  ".join([message, *records[:MAX_SHOWN], *more, *listed]))
        self.message, self.records = message, tuple(records)


class BadRecords:
    """Counts unreadable records, names each once in a file and the first in the log, and raises when they are too many.

    max_ratio: share of the records seen, once 100 were, beyond which `add` raises TooManyBadRecords.
    file: text with one record a line; those that a former run wrote into it are not repeated.
    """

    def __init__(self, max_ratio: float, file: str | os.PathLike = ""):
        self.max_ratio = max_ratio
        self.count = self.num_seen = 0
        self._file = pathlib.Path(file) if file else None
        known = self._file.read_text("utf-8", "replace") if self._file and self._file.exists() else ""
        self._named = dict.fromkeys(known.splitlines())
        self._torn = bool(known) and not known.endswith("\n")  # by a kill while it was written

    def add(self, records: Sequence[str], num_seen: int) -> None:
        """Takes the unreadable records among `num_seen` more."""
        self.count += len(records)
        self.num_seen += num_seen
        self._name(records)
        if self.num_seen >= MIN_SEEN and self.count > self.max_ratio * self.num_seen:
            raise self._error(
                f"{self.count} of {self.num_seen} records are unreadable, more than max_bad_ratio {self.max_ratio}; "
                "repair them, or go on with a larger --config.data.max_bad_ratio:",
                tuple(self._named),
            )

    def all_bad(self, error: TooManyBadRecords) -> TooManyBadRecords:
        """The stream's own error, which met only bad records, after these were listed as well."""
        self._name(error.records)
        return self._error(error.message, error.records)

    def _error(self, message: str, records: Sequence[str]) -> TooManyBadRecords:
        return TooManyBadRecords(message, records, self._file or "")

    def _name(self, records: Sequence[str]) -> None:
        lines = dict.fromkeys(_line(record) for record in records)
        new = [line for line in lines if line not in self._named]
        for number, line in enumerate(new, len(self._named)):
            if number < MAX_SHOWN:
                logging.warning("unreadable record replaced by the next: %s", line)
            if number == MAX_SHOWN:
                logging.warning("further unreadable records are named in %s only", self._file or "the final message")
        self._named |= dict.fromkeys(new)
        if self._file and new:
            with self._file.open("a", encoding="utf-8") as file:
                file.write("\n" if self._torn else "")
                file.writelines(f"{line}\n" for line in new)
            self._torn = False


def _line(record: str) -> str:
    """A record's text in one line: names of files may hold bytes that are no UTF-8, and what a terminal would obey."""
    return printable(" ".join(record.split()))
