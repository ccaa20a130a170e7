"""Counts unreadable records, reports each once, and stops a run that has too many of them."""

import os
import pathlib
from collections.abc import Sequence

from absl import logging

from detailclip_jax.runtime.errors import RunError
from detailclip_jax.runtime.terminal import printable

MIN_SEEN = 100  # records to see before the share of bad ones is checked
MAX_SHOWN = 20  # records in the log and in an error's message


def bad_list(workdir: pathlib.Path, process_index: int, process_count: int) -> pathlib.Path:
    """Returns the text file that lists the unreadable records of this process."""
    return workdir / ("bad_records.txt" if process_count == 1 else f"bad_records-{process_index}.txt")


class TooManyBadRecords(RunError):
    """Raised when more records are unreadable than allowed.

    `records` holds their keys with the reasons; the message shows the first 20.
    file: the file that lists all of them, if there is one.
    """

    def __init__(self, message: str, records: Sequence[str] = (), file: str | os.PathLike = ""):
        more = [f"and {len(records) - MAX_SHOWN} more"] if len(records) > MAX_SHOWN else []
        listed = [f"all of them are listed in {file}"] if file else []
        super().__init__("\n  ".join([message, *records[:MAX_SHOWN], *more, *listed]))
        self.message, self.records = message, tuple(records)


class BadRecords:
    """Counts unreadable records, writes each once to a file and logs the first 20; raises when there are too many.

    max_ratio: largest allowed share of unreadable records.  `add` checks it once 100 records have been seen and raises
        TooManyBadRecords.
    file: text file with one record per line; records that an earlier run wrote there are not repeated.
    """

    def __init__(self, max_ratio: float, file: str | os.PathLike = ""):
        self.max_ratio = max_ratio
        self.count = self.num_seen = 0
        self._file = pathlib.Path(file) if file else None
        known = self._file.read_text("utf-8", "replace") if self._file and self._file.exists() else ""
        self._named = dict.fromkeys(known.splitlines())
        self._torn = bool(known) and not known.endswith("\n")  # the process was killed during a write

    def add(self, records: Sequence[str], num_seen: int) -> None:
        """Adds the unreadable records among `num_seen` further records."""
        self.count += len(records)
        self.num_seen += num_seen
        self._name(records)
        if self.num_seen >= MIN_SEEN and self.count > self.max_ratio * self.num_seen:
            raise self._error(
                f"{self.count} of {self.num_seen} records are unreadable, more than max_bad_ratio {self.max_ratio}; "
                "repair them, or continue with a larger --config.data.max_bad_ratio:",
                tuple(self._named),
            )

    def all_bad(self, error: TooManyBadRecords) -> TooManyBadRecords:
        """Lists the records of an error that the stream raised, and returns the error that also names the file."""
        self._name(error.records)
        return self._error(error.message, error.records)

    def _error(self, message: str, records: Sequence[str]) -> TooManyBadRecords:
        return TooManyBadRecords(message, records, self._file or "")

    def _name(self, records: Sequence[str]) -> None:
        lines = dict.fromkeys(_line(record) for record in records)
        new = [line for line in lines if line not in self._named]
        for number, line in enumerate(new, len(self._named)):
            if number < MAX_SHOWN:
                logging.warning("unreadable record, replaced by the next one: %s", line)
            if number == MAX_SHOWN:
                logging.warning("more unreadable records are listed in %s only", self._file or "the final message")
        self._named |= dict.fromkeys(new)
        if self._file and new:
            with self._file.open("a", encoding="utf-8") as file:
                file.write("\n" if self._torn else "")
                file.writelines(f"{line}\n" for line in new)
            self._torn = False


def _line(record: str) -> str:
    """Returns a record's text on one line; invalid UTF-8 and terminal control characters in file names are escaped."""
    return printable(" ".join(record.split()))
