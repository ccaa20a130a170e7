"""Records that cannot be read: what a run does with them, up to its command's exit code."""

import io
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image
from tiny import check_names
from toy import toy_run, train

from detailclip_jax import pretraining
from detailclip_jax.config import default, run_config
from detailclip_jax.data.bad_records import BadRecords, TooManyBadRecords
from detailclip_jax.data.pipeline import BatchOptions, Pipeline, Stream
from detailclip_jax.data.sources import write_records
from detailclip_jax.data.tokenizer import Tokenizer
from detailclip_jax.data.views import Crop
from detailclip_jax.evaluation import run_report
from detailclip_jax.runtime.metric_files import read_lines
from detailclip_jax.runtime.progress import progress_line
from detailclip_jax.training import session

ROOT = Path(__file__).parents[2]


def names(num: int) -> list[str]:
    return [f"pair-{i}: empty" for i in range(num)]


def test_all_are_listed_in_the_file_and_twenty_in_the_message(tmp_path):
    bad = BadRecords(0.1, tmp_path / "bad.txt")
    bad.add(names(30), num_seen=99)
    with pytest.raises(TooManyBadRecords) as error:
        bad.add(names(31), num_seen=99)
    assert (tmp_path / "bad.txt").read_text().splitlines() == names(31) == list(error.value.records)
    lines = str(error.value).splitlines()
    assert lines[0].startswith("61 of 198 records are unreadable, more than max_bad_ratio 0.1")
    assert lines[1:21] == [f"  {name}" for name in names(20)]
    assert lines[21:] == ["  and 11 more", f"  all of them are listed in {tmp_path / 'bad.txt'}"]


def test_a_restart_lists_none_twice(tmp_path):
    for _ in range(2):
        bad = BadRecords(1.0, tmp_path / "bad.txt")
        bad.add(["a: empty", "b: two\nlines", "a: empty"], num_seen=3)
        assert bad.count == 3
    assert (tmp_path / "bad.txt").read_text() == "a: empty\nb: two lines\n"


def test_names_of_any_script_are_listed_under_any_locale(tmp_path):
    """Where the locale's encoding is ASCII, Path.write_text and its like refuse them; half a character is \\udcff."""
    code = (
        "import sys; from detailclip_jax.data.bad_records import BadRecords\n"
        "for _ in range(2): BadRecords(1.0, sys.argv[1]).add(['\\u732b.jpg: empty', 'caf\\udcff.jpg: empty'], 2)"
    )
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code, tmp_path / "bad.txt"], env=os.environ | locale, check=True, timeout=60)
    assert (tmp_path / "bad.txt").read_bytes().decode("utf-8") == "猫.jpg: empty\ncaf\\udcff.jpg: empty\n"


def test_a_line_that_a_kill_tore_stays_alone(tmp_path):
    (tmp_path / "bad.txt").write_bytes("a: empty\nb: 猫".encode()[:-1])
    for _ in range(2):
        bad = BadRecords(1.0, tmp_path / "bad.txt")
        for record in ("a: empty", "b: 猫", "c: empty"):
            bad.add([record], num_seen=1)
    whole = "a: empty\nb: 猫".encode()[:-1] + "\nb: 猫\nc: empty\n".encode()
    assert (tmp_path / "bad.txt").read_bytes() == whole


def test_without_bad_records_there_is_no_file(tmp_path):
    BadRecords(0.0, tmp_path / "bad.txt").add([], num_seen=200)
    assert not list(tmp_path.iterdir())


def test_the_log_names_the_first_and_then_the_file(tmp_path, caplog):
    caplog.set_level(logging.WARNING, logger="absl")
    bad = BadRecords(1.0, tmp_path / "bad.txt")
    for name in names(50):
        bad.add([name], num_seen=1)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 21 and messages[19].endswith("pair-19: empty")
    assert messages[20] == f"more unreadable records are listed in {tmp_path / 'bad.txt'} only"


class Nothing:
    """Records of which none is an image."""

    def __len__(self) -> int:
        return 150

    def __getitem__(self, index: int) -> dict:
        return {"image": b"", "captions": (), "label": -1, "key": f"pair-{index}"}


@pytest.mark.parametrize("num_workers", [0, 1])
def test_where_nothing_is_readable_the_list_is_written_too(tmp_path, num_workers):
    file = tmp_path / "bad.txt"
    stream = Stream(Nothing(), {"large": Crop(size=8)}, Tokenizer(8))
    batches = Pipeline(stream, BatchOptions(4, num_workers=num_workers, bad_list=file))
    with pytest.raises(TooManyBadRecords, match="100 unreadable records in a row; check that") as error, batches:
        next(batches)
    assert str(error.value).endswith(f"  and 80 more\n  all of them are listed in {file}")
    assert len(file.read_text().splitlines()) == 100


def test_the_progress_line_counts_them():
    values = {"images_per_second": 10.0, "data_wait": 0.0, "loss": 1.0}
    assert "bad" not in progress_line(1, 2, values | {"bad_records": 0}, [], 8)
    assert progress_line(1, 2, values | {"bad_records": 1}, [], 8).endswith(" | 1 bad record")
    assert progress_line(1, 2, values | {"bad_records": 1234}, [], 8).endswith(" | 1,234 bad records")
    assert " bad 1,234 " in progress_line(1, 2, values | {"bad_records": 1234}, [], 8, width=50)


def test_the_report_says_what_was_wrong_with_the_data(tmp_path):
    written = run_report.write(tmp_path, {}, default(), 1, "unreadable record was replaced by the next one 3 times")
    assert written.endswith("\nTraining data: unreadable record was replaced by the next one 3 times.\n")
    assert "Training data" not in run_report.write(tmp_path, {}, default(), 1)


@pytest.mark.parametrize(
    ("number", "words"),
    [(1, ("1 time;", "in 1 image;", "tokens: 1 caption")), (1200, ("1,200 times;", "1,200 images;", "1,200 captions"))],
)
def test_the_counts_of_the_data_have_their_nouns(number, words):
    config = ConfigDict({"data": {"max_instances": 100}, "model": {"context_length": 77}})
    counts = dict.fromkeys(("bad_records", "crowded_images", "truncated_captions"), number)
    said = session.data_summary(config, counts)
    check_names(f"{said};", *words)
    assert ("captions" in said) == ("images" in said) == (number > 1)


# in a run


def make_image(value: int) -> bytes:
    stream = io.BytesIO()
    pixels = np.random.default_rng(value).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def broken_set(folder: Path, num: int, num_bad: int) -> Path:
    """Every second record of the first ones is cut off."""
    images = [make_image(i)[: 300 if i % 2 and i < 2 * num_bad else None] for i in range(num)]
    write_records(folder, ({"image": data, "captions": [f"a {i}"], "key": f"k{i}"} for i, data in enumerate(images)))
    return folder


def test_a_run_replaces_counts_and_lists_them_and_says_what_it_reads(tmp_path):
    first, second = broken_set(tmp_path / "first", 20, 3), broken_set(tmp_path / "second", 10, 0)
    path, workdir = f"{first}@3,{second}@1", tmp_path / "run"
    said = io.StringIO()
    fields = {"data.source": "records", "data.path": path, "data.max_bad_ratio": 0.5, "total_steps": 10}
    assert train(lambda: toy_run(workdir, stream=said, log_every=1, **fields)) == 0
    printed = said.getvalue()
    listed = (workdir / "bad_records.txt").read_text().splitlines()
    assert [line.split(": ")[1] for line in sorted(listed)] == ["k1", "k3", "k5"]
    assert all(line.startswith(f"records:{first}: k") for line in listed)
    num_bad = read_lines(workdir / "metrics.jsonl")[-1]["bad_records"]
    assert num_bad >= 3 and f" | {num_bad} bad records" in printed
    assert f"replaced by the next one {num_bad} times; bad_records*.txt lists these records" in printed
    assert "data records: 30 examples\n" in printed
    assert f"\n   75.0% of records:{first}: 20 examples, each seen 3 times\n" in printed
    assert f"\n   25.0% of records:{second}: 10 examples, each seen 2 times\n" in printed


def test_too_many_end_the_run_with_their_list_and_no_traceback(tmp_path, capsys):
    fields = {"data.source": "records", "data.path": str(broken_set(tmp_path / "set", 60, 25))}
    assert train(lambda: toy_run(tmp_path / "run", total_steps=40, **fields)) == 1
    said = capsys.readouterr().err
    error = said[said.index("error: ") :].splitlines()
    assert "records are unreadable, more than max_bad_ratio 0.01; repair them, or continue with a larger" in error[0]
    assert "Traceback" not in said
    listed = (tmp_path / "run/bad_records.txt").read_text().splitlines()
    assert len(listed) == len(set(listed)) == 25
    assert error[1:21] == [f"  {line}" for line in listed[:20]]
    assert error[21:] == ["  and 5 more", f"  all of them are listed in {tmp_path / 'run/bad_records.txt'}"]


def test_a_set_that_is_not_there_ends_the_command_with_its_name(tmp_path, capsys):
    config = run_config.load("tests/configs/smallest.py:method=clip")
    config.data.source, config.data.path = "records", f"{broken_set(tmp_path / 'set', 9, 0)}@3,/nowhere@1"
    assert train(lambda: pretraining.prepare(config, tmp_path / "run")) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: set 2 of the 2 in data.path, records:/nowhere: no image-text records")
