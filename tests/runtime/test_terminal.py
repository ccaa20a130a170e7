"""Nothing that a terminal would obey gets out of names, captions and messages."""

import io
import json
import re

import numpy as np
import prepare_trees as trees
import pytest
from absl import logging
from test_prepare import prepared

from detailclip_jax.convert.files import write_json
from detailclip_jax.data.bad_records import BadRecords
from detailclip_jax.inference import embed_folder
from detailclip_jax.runtime import progress
from detailclip_jax.runtime.files import replace_text
from detailclip_jax.runtime.progress import Console
from detailclip_jax.runtime.terminal import LINES, complain, counted, json_escaped, plain, printable

HOSTILE = "\x1b[2J\x1b]0;owned\x07\r\x9b1mx\u202egnp.\u2066\x7f\udcff"  # clears, titles, overwrites, turns the name
SAFE = r"\x1b[2J\x1b]0;owned\x07\r".replace(r"\r", r"\x0d") + r"\x9b1mx\u202egnp.\u2066\x7f\udcff"
OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def assert_obedience_free(text):
    assert "owned" in text and not OBEYED.search(text), repr(text)


def test_control_characters_become_escapes():
    assert printable(HOSTILE) == SAFE
    assert printable("a\nb\tc") == r"a\x0ab\x09c" and printable("a\nb\tc\r", LINES) == "a\nb\tc\\x0d"
    for text in ("für Elise 漢字 🐸", "👩‍🚀 joined", "C:\\x1b", "عربي"):
        assert printable(text) == text


def test_json_keeps_its_values():
    value = {HOSTILE: [HOSTILE, "漢字"], "n": 1}
    text = json_escaped(json.dumps(value, ensure_ascii=False, indent=1))
    assert json.loads(text) == value and not OBEYED.search(text) and "漢字" in text


def test_the_screen_the_log_and_reports_are_free_of_them(tmp_path, capsys, caplog):
    complain(f"error: {HOSTILE}")
    assert_obedience_free(capsys.readouterr().err)
    console = Console()
    console.say(HOSTILE)
    console.warn(HOSTILE)
    assert_obedience_free(capsys.readouterr().out)
    logging.warning("%s and %d", HOSTILE, 3)
    assert_obedience_free(caplog.text)
    assert caplog.text.rstrip().endswith("and 3")
    replace_text(tmp_path / "report.md", f"|{HOSTILE}|\n")
    assert_obedience_free((tmp_path / "report.md").read_text())
    write_json(tmp_path / "x.json", {"paths": [HOSTILE]})
    assert_obedience_free((tmp_path / "x.json").read_text())


def test_a_live_line_has_our_own_commands_alone(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: True)
    console = progress.Console(stream=stream)
    console.live(HOSTILE + "\n")
    console.say(HOSTILE)
    text = stream.getvalue().replace("\r\x1b[K", "")
    assert_obedience_free(text)
    assert text.count("\n") == 1


def test_a_hostile_record_s_name_is_escaped_in_the_list_and_the_log(tmp_path, caplog):
    BadRecords(1.0, tmp_path / "bad.txt").add([f"{HOSTILE}\n*** WARNING: not true: truncated"], 1)
    assert_obedience_free((tmp_path / "bad.txt").read_text())
    assert len((tmp_path / "bad.txt").read_text().splitlines()) == 1
    assert_obedience_free(caplog.text)
    assert not any(line.startswith("***") for line in caplog.text.splitlines())


def test_unreadable_images_are_named_without_them(capsys):
    embed_folder.warn_of_bad({f"{HOSTILE}\n*** WARNING: no.jpg": HOSTILE}, Console())
    shown = capsys.readouterr().out
    assert_obedience_free(shown)
    assert len(shown.splitlines()) == 2


def test_prepare_names_hostile_classes_and_captions_without_them(tmp_path, capsys):
    name = HOSTILE.replace("\udcff", "")
    trees.write(tmp_path / "in" / name / "x.jpg", trees.jpeg(1))
    trees.write(tmp_path / "in" / name / "x.txt", name.encode())
    trees.write(tmp_path / "in" / name / "bad.jpg", b"no")
    part = prepared(tmp_path / "in", tmp_path / "out", kind="imagefolder")
    assert part["num_examples"] == 1
    for file in ("dataset.json", "train-rejected.jsonl"):
        assert_obedience_free((tmp_path / "out" / file).read_text())
    assert json.loads((tmp_path / "out/dataset.json").read_text())["splits"]["train"]["classes"] == [name]


@pytest.mark.parametrize("number", [*range(0x20), *range(0x7F, 0xA0), 0x202E, 0x2069, 0xD800])
def test_every_one_of_them_is_escaped(number):
    assert printable(chr(number)).isprintable() and np.char.str_len(printable(chr(number))) > 1


def test_a_number_and_its_noun_agree():
    assert [counted(n, "step") for n in (0, 1, 2400)] == ["0 steps", "1 step", "2,400 steps"]


@pytest.mark.parametrize(("number", "text"), [(4.77e-7, "0.000000477"), (9.8, "9.8"), (1.0, "1"), (1234.5, "1230")])
def test_small_numbers_have_no_exponent(number, text):
    assert plain(number) == text
