"""The first 1,000 examples of a set of JPEG files are the same, to the last byte, however they are read."""

import hashlib
import io

import numpy as np
import pytest
from PIL import Image

from detailclip_jax.config import default
from detailclip_jax.data import pipeline
from detailclip_jax.data.sources import write_records

NUM, BATCH = 1000, 20


def jpeg(number: int) -> bytes:
    rng = np.random.default_rng(number)
    pixels = rng.integers(0, 256, (rng.integers(20, 40), rng.integers(20, 40), 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG")
    return stream.getvalue()


def config(path: str):
    """The paper's two views with all of their colour changes, of 16 pixels."""
    c = default()
    c.batch_size, c.data.path, c.model.context_length, c.data.max_bad_ratio = BATCH, path, 12, 0.1
    c.views.crops.large.size = 16
    return c


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(config, source) of 150 images, of which two are damaged, in three shards and two sets."""
    folder = tmp_path_factory.mktemp("jpeg")
    for name, numbers in (("large", range(110)), ("small", range(110, 150))):
        write_records(
            folder / name,
            (
                {
                    "image": jpeg(n)[: 200 if n in (7, 120) else None],
                    "captions": [f"title {n}", f"text {n}"],
                    "label": n,
                }
                for n in numbers
            ),
            shard_size=60,
        )
    c = config(f"{folder / 'large'}@2,{folder / 'small'}@1")
    return c, pipeline.open_source(c)


def hashes(batch: dict) -> list[str]:
    """One for each example, over all that a step reads of it."""
    arrays = {"text": batch["text"], "label": batch["label"]}
    arrays |= {f"{kind}/{crop}": array for kind in ("image", "box") for crop, array in batch[kind].items()}
    rows = range(len(batch["label"]))
    return [
        hashlib.sha256(b"".join(name.encode() + arrays[name][row].tobytes() for name in sorted(arrays))).hexdigest()
        for row in rows
    ]


def read(run, num_batches: int, num_workers: int = 0, start: int = 0, processes: int = 1) -> list[str]:
    """The hashes of so many global batches, by as many processes, in the order of the stream."""
    c, source = run
    c = c.copy_and_resolve_references()
    c.data.num_workers = num_workers
    opened = [pipeline.open_pipeline(c, source, index, processes, start) for index in range(processes)]
    made = [one for _ in range(num_batches) for batches in opened for one in hashes(next(batches))]
    for batches in opened:
        assert batches.position == start + num_batches * BATCH
        batches.close()
    return made


@pytest.fixture(scope="module")
def whole(run) -> list[str]:
    return read(run, NUM // BATCH)


@pytest.mark.check
def test_no_two_of_them_are_equal(whole):
    assert len(set(whole)) == NUM  # six epochs and more, each with crops and colours of its own


@pytest.mark.check
@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [1, 2])
def test_workers_change_nothing(run, whole, num_workers):
    assert read(run, NUM // BATCH, num_workers) == whole


@pytest.mark.check
@pytest.mark.parametrize("start", [13, 20, 149, 150, 979])
def test_a_restart_goes_on_where_it_was(run, whole, start):
    """At the ends of batches and of epochs, and in the middle of both."""
    num_batches = min(5, (NUM - start) // BATCH)
    assert read(run, num_batches, start=start) == whole[start : start + num_batches * BATCH]


@pytest.mark.check
@pytest.mark.parametrize("start", [40, 333])
def test_two_processes_go_on_where_one_was(run, whole, start):
    assert read(run, 5, start=start, processes=2) == whole[start : start + 5 * BATCH]


@pytest.mark.check
def test_one_process_with_workers_goes_on_where_two_were(run, whole):
    with_two = read(run, 3, processes=2)
    assert with_two + read(run, 3, num_workers=2, start=3 * BATCH) == whole[: 6 * BATCH]
