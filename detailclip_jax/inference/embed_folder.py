"""Embeds a folder of images and a list of texts into a file; what the file already holds is not computed again."""

import contextlib
import functools
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from detailclip_jax.data.image_files import ImageFileBatches, ImageFiles
from detailclip_jax.inference import embeddings
from detailclip_jax.inference.embeddings import IMAGE, TEXT, Key, Origin, Table
from detailclip_jax.runtime.devices import usable_cores
from detailclip_jax.runtime.files import read_bytes
from detailclip_jax.runtime.progress import Console, Meter
from detailclip_jax.runtime.signals import Saving
from detailclip_jax.runtime.terminal import complain, counted, printable

if TYPE_CHECKING:  # --help is fast without jax and the networks
    from detailclip_jax.inference.model import Model

RUN_ERROR = 1
BATCH_SIZE, TEXT_BLOCK = 64, 1024
PREFETCH = min(max(usable_cores(), 2), 32)  # batches in preparation or ready, each with its own thread
MAX_TEXTS = 256 * 2**20  # bytes of a file of texts
SAVE_EVERY = 300.0  # seconds between saves, which limit the loss if the machine fails
MAX_NAMED = 20
# Keys, their rows [B, E], and for each row why it is invalid ("" if valid).
EmbeddedBatch = tuple[Sequence[Key], np.ndarray, Sequence[str]]


class Request(NamedTuple):
    """The validated request of the command line."""

    files: ImageFiles | None
    texts: list[str]
    out: Path | None


def read_texts(file: str | Path | None, more: Sequence[str] = ()) -> list[str]:
    """Returns the non-empty lines of a UTF-8 file, if there is one, then the non-empty ones of `more` texts."""
    try:
        lines = read_bytes(file, MAX_TEXTS).decode("utf-8-sig").splitlines() if file else []
    except UnicodeDecodeError as error:
        raise ValueError(f"--texts={file} is not UTF-8 ({error}); save it as UTF-8") from error
    return [text.strip() for text in [*lines, *more] if text.strip()]


def embed_images(model: "Model", files: ImageFiles, keys: Sequence[Key]) -> Iterator[EmbeddedBatch]:
    """Embeds images batch by batch, while threads read the next ones."""
    from detailclip_jax.data.workers import Prefetched
    from detailclip_jax.inference.batching import in_shapes, in_turn, shapes_up_to

    todo = files._replace(names=tuple(key.name for key in keys))
    images = ImageFileBatches(todo, model.transform, BATCH_SIZE)
    with contextlib.closing(Prefetched(images, prefetch=PREFETCH)) as batches:

        def calls() -> Iterator[tuple[Any, list[str]]]:
            for batch in batches:
                reasons = iter(batch["reason"])
                for rows, count in in_shapes(batch["image"], shapes_up_to(BATCH_SIZE)):
                    yield model.encode.image(model.params, rows), [*itertools.islice(reasons, count)]

        first = 0
        for rows, reasons in in_turn(calls()):
            yield keys[first : first + len(reasons)], np.asarray(rows)[: len(reasons)], reasons
            first += len(reasons)


def embed_texts(model: "Model", keys: Sequence[Key]) -> Iterator[EmbeddedBatch]:
    """Embeds texts block by block."""
    for first in range(0, len(keys), TEXT_BLOCK):
        block = keys[first : first + TEXT_BLOCK]
        yield block, model.encode_text([key.name for key in block]), [""] * len(block)


class Collected(NamedTuple):
    """The computed rows, and the reasons for images that cannot be embedded."""

    rows: dict[Key, np.ndarray]
    bad: dict[str, str]


def collect(
    batches: Iterator[EmbeddedBatch],
    meter: Meter,
    into: Collected,
    stopped: Callable[[], bool],
    save: Callable[[], None],
) -> None:
    """Collects the batches until they end or `stopped` returns True; calls `save` at intervals."""
    saved, num_bad = time.perf_counter(), 0
    for keys, rows, reasons in batches:
        into.rows.update({key: row for key, row, reason in zip(keys, rows, reasons) if not reason})
        into.bad.update({key.name: reason for key, reason in zip(keys, reasons) if reason})
        num_bad += len([reason for reason in reasons if reason])
        meter.add(len(keys), *([f"{num_bad:,} unreadable"] if num_bad else []))
        if stopped():
            return
        if time.perf_counter() - saved > SAVE_EVERY:
            save()
            saved = time.perf_counter()


def image_keys(files: ImageFiles) -> list[Key]:
    """Keys of the image files, with their current modification times."""
    keys = []
    for name in files.names:
        try:
            modified = (files.root / name).stat().st_mtime_ns
        except OSError:  # a broken link; the reader reports it
            modified = 0
        keys.append(Key(IMAGE, name, modified))
    return keys


def wanted(request: Request, kept: Sequence[Key]) -> list[Key]:
    """The keys of the updated table: all images and texts of this and earlier calls.

    If the request has images, those of earlier calls whose files have changed or are gone are left out.
    """
    images, texts = ([key for key in kept if key.kind == kind] for kind in (IMAGE, TEXT))
    if request.files:
        earlier = image_keys(request.files._replace(names=tuple(key.name for key in images)))
        images = sorted({*image_keys(request.files), *(set(images) & set(earlier))})
    return list(dict.fromkeys([*images, *texts, *(Key(TEXT, text) for text in request.texts)]))


def partial_file(out: Path) -> Path:
    """The file in which an interrupted call stores its results."""
    return out.with_name(f"{out.stem}.partial{out.suffix}")


def recall(out: Path | None, origin: Origin) -> Table:
    """The rows in `out` and in the file of an interrupted call.

    Raises ValueError if they are from another checkpoint or of another folder of images.
    """
    rows: dict[Key, np.ndarray] = {}
    for file in (out, partial_file(out)) if out else ():
        if file.exists():
            table = embeddings.read(file)
            embeddings.check_checkpoint(file, table.origin, origin, "choose another --out, or delete it")
            theirs, ours = table.origin.root, origin.root
            if theirs and ours and theirs != ours:
                raise ValueError(
                    f"{file} contains images of {theirs}, not of {ours}; choose another --out, or delete it"
                )
            origin = origin._replace(root=theirs or ours)
            rows |= table.rows
    return Table(origin, rows)


def update(model: "Model", request: Request, console: Console) -> tuple[Table, int]:
    """Computes the table of a request, writes it if a file is named, and returns it with the command's exit code.

    Rows that the file already holds for the same model are not computed again. Raises ValueError if the file is of
    another model or folder.
    """
    root = str(request.files.root.resolve()) if request.files else ""
    known = recall(request.out, embeddings.origin_of(model)._replace(root=root))
    for _, reason in request.files.left_out if request.files else ():
        console.say(f"left out: {printable(reason)}")
    keys, collected = wanted(request, list(known.rows)), Collected(dict(known.rows), {})
    images, texts = ([k for k in keys if k.kind == kind and k not in collected.rows] for kind in (IMAGE, TEXT))
    stages: list[tuple[str, Any, int]] = []
    if images and request.files:
        stages.append(("images", embed_images(model, request.files, images), len(images)))
    if texts:
        stages.append(("texts", embed_texts(model, texts), len(texts)))
    keep = functools.partial(save, request.out, known.origin, collected)
    with Saving("saving after this batch") as saving:
        for noun, batches, total in stages:
            with contextlib.closing(batches):
                if not saving.received:
                    collect(batches, Meter(console, noun, total), collected, lambda: bool(saving.received), keep)
        console.end_live()
    table = Table(known.origin, {key: collected.rows[key] for key in keys if key in collected.rows})
    warn_of_bad(collected.bad, console)
    if saving.received:
        stopped(request.out, known.origin, collected, len(keys), console)
        return table, saving.exit_code
    if request.files and not any(key.kind == IMAGE for key in table.rows):
        complain(f"error: none of the {len(request.files.names)} images is readable")
        return table, RUN_ERROR
    if request.out:
        finish(request.out, table, known, console)
    return table, 0


def save(out: Path | None, origin: Origin, collected: Collected) -> None:
    """Writes the rows computed so far to the partial file of `out`."""
    if out and collected.rows:
        embeddings.write(partial_file(out), Table(origin, collected.rows))


def stopped(out: Path | None, origin: Origin, collected: Collected, total: int, console: Console) -> None:
    """Saves the rows computed so far and reports the interruption."""
    if out is None or not collected.rows:
        return console.say("interrupted; nothing is saved" + ("" if out else " without --out"))
    save(out, origin, collected)
    console.say(f"interrupted: {len(collected.rows):,} of {total:,} are embedded, saved in {partial_file(out)}")
    return console.say("the same command resumes from there")


def finish(out: Path, table: Table, known: Table, console: Console) -> None:
    """Writes the file, unless it is up to date, and deletes the partial file."""
    counts = ", ".join(f"{kind}s: {sum(key.kind == kind for key in table.rows):,}" for kind in (IMAGE, TEXT))
    if list(table.rows) == list(known.rows) and out.exists() and not partial_file(out).exists():
        return console.say(f"{out} is up to date; {counts}")
    embeddings.write(out, table)
    partial_file(out).unlink(missing_ok=True)
    return console.say(f"written to {out}; {counts}")


def warn_of_bad(bad: dict[str, str], console: Console) -> None:
    """Prints the number and the names of the images that are left out."""
    if bad:
        console.warn(f"{counted(len(bad), 'unreadable image is', 'unreadable images are')} skipped:")
        for name, reason in list(bad.items())[:MAX_NAMED]:
            console.say(f"  {printable(name)}: {printable(reason)}")
        if len(bad) > MAX_NAMED:
            console.say(f"  and {len(bad) - MAX_NAMED:,} more")
