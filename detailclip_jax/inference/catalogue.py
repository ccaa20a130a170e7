"""Brings a file of embeddings up to date with a folder of pictures and a list of texts."""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from detailclip_jax.data.picture_files import Found, PictureBatches
from detailclip_jax.inference import embeddings
from detailclip_jax.inference.embeddings import IMAGE, TEXT, Key, Origin, Table
from detailclip_jax.runtime.cores import usable_cores
from detailclip_jax.runtime.progress import Console, Meter
from detailclip_jax.runtime.terminal import complain, printable

if TYPE_CHECKING:  # jax and the networks come after the flags, so that --help is quick
    from detailclip_jax.inference.model import Model
    from detailclip_jax.runtime.interrupt import Interrupt

RUN_ERROR = 1
BATCH_SIZE, TEXT_BLOCK = 64, 1024
PREFETCH = min(max(usable_cores(), 2), 32)  # batches ready or in the making, each by a thread of its own
SAVE_EVERY = 300.0  # seconds after which what is embedded is kept, should the machine fail
MAX_NAMED = 20
Part = tuple[Sequence[Key], np.ndarray, Sequence[str]]  # keys, rows [B, E], and why a row is none


class Request(NamedTuple):
    """What the command line asks for, checked and found."""

    found: Found | None
    texts: list[str]
    out: Path | None


def _bad(count: int) -> list[str]:
    return [f"{count:,} unreadable"] if count else []


def parts_of_pictures(model: "Model", found: Found, keys: Sequence[Key]) -> Iterator[Part]:
    """Embeds pictures batch by batch, while threads read the next ones."""
    from detailclip_jax.data.workers import Prefetched
    from detailclip_jax.inference.model import in_turn

    todo = found._replace(names=tuple(key.name for key in keys))
    pictures = PictureBatches(todo, model.transform, BATCH_SIZE)
    with contextlib.closing(Prefetched(pictures, prefetch=PREFETCH)) as batches:
        calls = ((model.encode.image(model.params, batch["image"]), batch["reason"]) for batch in batches)
        for number, (rows, reasons) in enumerate(in_turn(calls)):
            first = number * BATCH_SIZE
            yield keys[first : first + len(reasons)], rows, reasons


def parts_of_texts(model: "Model", keys: Sequence[Key]) -> Iterator[Part]:
    """Embeds texts block by block."""
    for first in range(0, len(keys), TEXT_BLOCK):
        block = keys[first : first + TEXT_BLOCK]
        yield block, model.encode_text([key.name for key in block]), [""] * len(block)


class Collected(NamedTuple):
    """Rows that are embedded, and reasons of the pictures that cannot be."""

    rows: dict[Key, np.ndarray]
    bad: dict[str, str]


def collect(
    parts: Iterator[Part], meter: Meter, into: Collected, stopped: Callable[[], bool], save: Callable[[], None]
) -> None:
    """Takes the parts until there are no more or `stopped` says so, and saves now and then."""
    saved, num_bad = time.perf_counter(), 0
    for keys, rows, reasons in parts:
        into.rows.update({key: row for key, row, reason in zip(keys, rows, reasons) if not reason})
        into.bad.update({key.name: reason for key, reason in zip(keys, reasons) if reason})
        num_bad += len([reason for reason in reasons if reason])
        meter.add(len(keys), *_bad(num_bad))
        if stopped():
            return
        if time.perf_counter() - saved > SAVE_EVERY:
            save()
            saved = time.perf_counter()


def image_keys(found: Found) -> list[Key]:
    """Keys of the files as they are now."""
    return [Key(IMAGE, name, _modified(found.root / name)) for name in found.names]


def _modified(file: Path) -> int:
    try:
        return file.stat().st_mtime_ns
    except OSError:  # a broken link: reading it says so
        return 0


def wanted(request: Request, kept: Sequence[Key]) -> list[Key]:
    """Keys that the table is to hold: the folder's pictures as they are now, and all texts that were ever given."""
    images = [key for key in kept if key.kind == IMAGE] if request.found is None else image_keys(request.found)
    texts = [key for key in kept if key.kind == TEXT] + [Key(TEXT, text) for text in request.texts]
    return list(dict.fromkeys([*images, *texts]))


def partial_file(out: Path) -> Path:
    """Where an interrupted call leaves what it has."""
    return out.with_name(f"{out.stem}.partial{out.suffix}")


def recall(out: Path | None, origin: Origin) -> Table:
    """What `out` and an interrupted call hold; ValueError where another checkpoint made it, or of other pictures."""
    rows: dict[Key, np.ndarray] = {}
    for file in (out, partial_file(out)) if out else ():
        if file.exists():
            table = embeddings.read(file)
            check_checkpoint(file, table.origin, origin, "choose another --out, or delete it")
            origin = origin._replace(root=same_root(file, table.origin.root, origin.root))
            rows |= table.rows
    return Table(origin, rows)


def check_checkpoint(file: Path, theirs: Origin, ours: Origin, way_out: str) -> None:
    """ValueError unless the embeddings were made by the very weights."""
    if theirs.fingerprint != ours.fingerprint:
        raise ValueError(f"{file} was made by another model ({theirs}) than this one ({ours}); {way_out}")


def same_root(file: Path, theirs: str, ours: str) -> str:
    """The folder of the pictures, one for a file; ValueError for two."""
    if theirs and ours and theirs != ours:
        raise ValueError(f"{file} holds pictures of {theirs}, not of {ours}; choose another --out, or delete it")
    return theirs or ours


def update(model: "Model", request: Request, console: Console) -> tuple[Table, int]:
    """The table that the request asks for, on disk if it names a file; and the command's exit code.

    What the file holds of the same model is not embedded again.  Raises ValueError if it is another model's, or of
    another folder.
    """
    from detailclip_jax.runtime.interrupt import Interrupt

    root = str(request.found.root.resolve()) if request.found else ""
    known = recall(request.out, origin_of(model)._replace(root=root))
    left_out = dict(request.found.left_out) if request.found else {}
    keys, made = wanted(request, list(known.rows)), Collected(dict(known.rows), left_out)
    with Interrupt() as interrupt:
        embed_missing(model, request, keys, made, interrupt, console, lambda: save(request.out, known.origin, made))
    table = Table(known.origin, {key: made.rows[key] for key in keys if key in made.rows})
    warn_of_bad(made.bad, console)
    if interrupt.received:
        stopped(request.out, known.origin, made, len(keys), console)
        return table, interrupt.exit_code
    if request.found and not any(key.kind == IMAGE for key in table.rows):
        complain(f"error: none of the {len(request.found.names)} pictures can be read")
        return table, RUN_ERROR
    if request.out:
        finish(request.out, table, known, console)
    return table, 0


def origin_of(model: "Model") -> Origin:
    """The model, as files name it."""
    return Origin(model.path, model.step, model.weights, model.fingerprint)


def embed_missing(
    model: "Model",
    request: Request,
    keys: Sequence[Key],
    made: Collected,
    interrupt: "Interrupt",
    console: Console,
    save: Callable[[], None],
) -> None:
    """Embeds the pictures and texts that are not there yet."""
    images, texts = ([k for k in keys if k.kind == kind and k not in made.rows] for kind in (IMAGE, TEXT))
    stages: list[tuple[str, Any, int]] = []
    if images and request.found:
        stages.append(("images", parts_of_pictures(model, request.found, images), len(images)))
    if texts:
        stages.append(("texts", parts_of_texts(model, texts), len(texts)))
    for noun, parts, total in stages:
        with contextlib.closing(parts):
            if not interrupt.received:
                collect(parts, Meter(console, noun, total), made, lambda: interrupt.reached(), save)
    console.end_live()


def save(out: Path | None, origin: Origin, made: Collected) -> None:
    """Keeps what is embedded beside `out`."""
    if out and made.rows:
        embeddings.write(partial_file(out), Table(origin, made.rows))


def stopped(out: Path | None, origin: Origin, made: Collected, total: int, console: Console) -> None:
    """Keeps what is embedded, and says so."""
    if out is None or not made.rows:
        return console.say("interrupted; nothing is kept" + ("" if out else " without --out"))
    save(out, origin, made)
    console.say(f"interrupted: {len(made.rows):,} of {total:,} are embedded, kept in {partial_file(out)}")
    return console.say("the same command goes on from there")


def finish(out: Path, table: Table, known: Table, console: Console) -> None:
    """Writes the file unless it holds just that, and takes the partial one away."""
    counts = ", ".join(f"{kind}s: {sum(key.kind == kind for key in table.rows):,}" for kind in (IMAGE, TEXT))
    if list(table.rows) == list(known.rows) and out.exists() and not partial_file(out).exists():
        return console.say(f"{out} is up to date; {counts}")
    embeddings.write(out, table)
    partial_file(out).unlink(missing_ok=True)
    return console.say(f"written to {out}; {counts}")


def warn_of_bad(bad: dict[str, str], console: Console) -> None:
    """Counts and names the pictures that are left out."""
    if bad:
        console.warn(f"{len(bad):,} unreadable images are left out:")
        for name, reason in list(bad.items())[:MAX_NAMED]:
            console.say(f"  {printable(name)}: {printable(reason)}")
        if len(bad) > MAX_NAMED:
            console.say(f"  and {len(bad) - MAX_NAMED:,} more")
