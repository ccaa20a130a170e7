"""Reads images by name from a folder, a zip, or zips in a folder."""

import collections
import errno
import os
import zipfile
import zlib
from collections.abc import Sequence

from detailclip_jax.convert.examples import Rejected
from detailclip_jax.runtime.files import MAX_BYTES, TooLarge, read_bytes
from detailclip_jax.runtime.folders import LeavesFolder, inside

Place = Sequence[str]  # (path,) of a file, or (path of a zip, name in the zip)
MAX_OPEN = 4
ABSENT = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP}
# zipfile raises NotImplementedError for unsupported compression and RuntimeError for encrypted files.
DAMAGED_ZIP = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError)


class ImageRoot:
    """Reads files below `root`, a folder or a zip.  A context manager that closes its zips.

    A path may be absolute or contain `..` as long as it stays below the root.  Links are followed.
    """

    def __init__(self, root: str):
        self._root, self._is_zip = root, os.path.isfile(root)
        self._zips: collections.OrderedDict[str, zipfile.ZipFile | None] = collections.OrderedDict()

    def __enter__(self) -> "ImageRoot":
        return self

    def __exit__(self, *exception: object) -> None:
        while self._zips:
            self._close_oldest()

    def read(self, places: Sequence[Place]) -> bytes:
        """Returns the bytes at the first place that exists; Rejected if none exists or it is too large."""
        for place in places:
            data = self._read(place)
            if data is not None:
                return data
        raise Rejected(f"missing file: {' or '.join('!'.join(place) for place in places)}")

    def _read(self, place: Place) -> bytes | None:
        if any("\0" in part for part in place):
            raise Rejected(f"unsafe path: {place!r:.80}")
        if self._is_zip and len(place) == 1:
            return self._member(self._root, place[0])
        try:
            path = inside(self._root, place[0])
            return self._member(path, place[1]) if len(place) == 2 else read_bytes(path)
        except LeavesFolder as error:
            raise Rejected(f"{error}; give another folder of images with --images ROOT") from error
        except TooLarge as error:
            raise Rejected(str(error)) from error
        except UnicodeEncodeError:  # "\ud800", which a json may contain and no name of a file does
            return None
        except OSError as error:
            if error.errno not in ABSENT:
                raise
            return None

    def _member(self, path: str, name: str) -> bytes | None:
        try:
            archive = self._open(path)
            info = archive.NameToInfo.get(name) if archive else None
            if archive is None or info is None:
                return None
            if info.file_size > MAX_BYTES:
                raise Rejected(f"too large: {name} claims {info.file_size} bytes")
            return archive.read(info)  # unpacks no more than that
        except (*DAMAGED_ZIP, OSError) as error:
            # EINVAL: an offset before the start of the file
            if isinstance(error, OSError) and error.errno != errno.EINVAL:
                raise
            raise Rejected(f"damaged zip: {path}: {error}") from error

    def _open(self, path: str) -> zipfile.ZipFile | None:
        if path not in self._zips:
            if len(self._zips) >= MAX_OPEN:
                self._close_oldest()
            self._zips[path] = zipfile.ZipFile(path) if os.path.isfile(path) else None
        return self._zips[path]

    def _close_oldest(self) -> None:
        _, archive = self._zips.popitem(last=False)
        if archive is not None:
            archive.close()
