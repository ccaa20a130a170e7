"""The conversion against a plain loop, restarts, what dataset.json says, and the command."""

import io
import json
import pathlib

import msgpack
import numpy as np
import prepare_trees as trees
import pytest
from PIL import Image

from detailclip_jax import prepare
from detailclip_jax.convert import (
    cleaning,
    examples,
    files,
    image_checks,
    known_sizes,
    local_engine,
    output_shard,
    set_report,
    statistics,
)
from detailclip_jax.convert.examples import Raw, pack
from detailclip_jax.convert.job import Job, Options, Request, Shard
from detailclip_jax.convert.planning import AlreadyThere, begin
from detailclip_jax.convert.prepared_set import finish, load
from detailclip_jax.data.sources import Records, write_records
from detailclip_jax.data.tokenizer import Tokenizer
from detailclip_jax.prepare import main
from detailclip_jax.runtime.progress import Console

QUIET = Console(stream=io.StringIO())


@pytest.fixture
def tars(tmp_path):
    return trees.webdataset(tmp_path / "tars")


def prepared(source, out, num_shards=0, kind="webdataset", split="train", **options):
    """The split's part of dataset.json, made in this process."""
    paths = tuple(map(str, source)) if isinstance(source, list) else (str(source),)
    request = Request(kind, paths, str(out), split, options=Options(**options))
    job = begin(request, num_shards)
    local_engine.run(job, 1, QUIET)
    return finish(job)


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(pathlib.Path(folder).iterdir()) if path.is_file()}


def keys(folder, split="train"):
    source = Records(folder, split)
    return [source[index]["key"] for index in range(len(source))]


# What is done to one example


@pytest.mark.parametrize(
    ("metadata", "caption"),
    [
        ("Rio+%26+S%C3%A3o+Paulo", "Rio & São Paulo"),
        ("a%2Bb+c", "a b c"),  # an escaped plus becomes a space too: decoding comes first
        ("%3Ca+href%3D%22x%22+rel%3Dnofollow%3Eher+photo%3C%2Fa%3E+of+%3Cb%3Eme%3C%2Fb%3E", "her photo of me"),
        ("<i>one</i> <I>two</I> <br>", "one <I>two</I> <br>"),  # only a, b and i, and only in small letters
        ("see+http%3A%2F%2Fflickr.com%2Fa+b,+www.x.org%2Fy", "see  b, "),
        ("awwwesome shot", "a shot"),  # inside of words as well
        ("100%", "100%"),  # no escape
        ("", ""),
    ],
)
def test_captions_are_cleaned_as_slip_cleans_them(metadata, caption):
    assert cleaning.slip(metadata) == caption


def test_a_record_has_named_texts_beside_the_captions():
    raw = Raw("k", b"jpeg", texts={"title": "one", "description": "two", "image": "not me"}, label=3)
    fields = msgpack.unpackb(pack(raw))
    assert fields == {
        "title": "one",
        "description": "two",
        "image": b"jpeg",
        "captions": ["one", "two", "not me"],
        "label": 3,
        "key": "k",
    }


def test_lone_surrogates_are_made_valid():
    raw = output_shard.clean(Raw("k\udcff", b"", ("a\ud800b",), {"title": "\udfff"}), "none")
    assert (raw.key, raw.captions, raw.texts) == ("k\\udcff", ("a?b",), {"title": "?"})
    pack(raw)


# The shards


SOURCE = [f"{tar:05d}/{tar:05d}{n:04d}" for tar in range(3) for n in range(7)]


@pytest.mark.parametrize(("num_shards", "expected"), [(0, [7, 7, 7]), (1, [21]), (2, [7, 14]), (8, [7, 7, 7])])
def test_shards_have_the_examples_of_the_source_in_its_order(tars, tmp_path, num_shards, expected):
    part = prepared(tars, tmp_path / "out", num_shards)
    assert [one["num_examples"] for one in part["shards"]] == expected
    assert keys(tmp_path / "out") == SOURCE


def test_a_source_of_many_shards_has_at_most_1024(tmp_path):
    shards = tuple(Shard(f"{n}", f"{n}.tar") for n in range(2500))
    planned = Job(Request("webdataset", (), str(tmp_path)), 1024, shards)
    groups = [planned.inputs(number) for number in range(1024)]
    assert tuple(trees.flat(groups)) == shards and {len(group) for group in groups} == {2, 3}


def test_images_and_captions_are_those_of_the_source(tars, tmp_path):
    prepared(tars, tmp_path / "out", 2)
    source = Records(tmp_path / "out", "train")
    for index in range(len(source)):
        tar, n = (int(part) for part in (source[index]["key"][:5], source[index]["key"][-4:]))
        assert source[index]["image"] == trees.jpeg(100 * tar + n)
        assert source[index]["captions"] == (f"picture {n} of tar {tar}",)


def test_of_equal_keys_the_first_is_kept(tmp_path):
    members = [trees.sample("a", 1, "first"), trees.sample("b", 2), trees.sample("a", 3, "second")]
    trees.write_tar(tmp_path / "x.tar", trees.flat(members))
    part = prepared(tmp_path / "x.tar", tmp_path / "out", 1)
    assert part["rejected"] == {"duplicate key": 1}
    assert keys(tmp_path / "out") == ["x/a", "x/b"]
    assert Records(tmp_path / "out", "train")[0]["captions"] == ("first",)


def repeating(folder, rng):
    """Five tables in which keys occur several times; returns the captions that a plain loop keeps."""
    kept = {}
    trees.write(folder / "a.jpg", trees.jpeg(1))
    for table in range(5):
        names = [f"k{n}" for n in rng.integers(0, 30, 20)]
        rows = [f"a.jpg,{name},{table}-{place}\n" for place, name in enumerate(names)]
        trees.write(folder / f"{table}.csv", "image,key,caption\n" + "".join(rows))
        for place, name in enumerate(names):
            kept.setdefault(name, f"{table}-{place}")
    return kept


@pytest.mark.parametrize("seed", range(3))
def test_of_keys_that_shards_repeat_the_first_is_kept(tmp_path, monkeypatch, seed):
    monkeypatch.setattr("detailclip_jax.convert.rows.PER_SHARD", 7)
    kept = repeating(tmp_path / "in", np.random.default_rng(seed))
    part = prepared(tmp_path / "in", tmp_path / "out", kind="csv", key_column="key")
    found = Records(tmp_path / "out", "train")
    assert {found[n]["key"]: found[n]["captions"][0] for n in range(len(found))} == kept
    assert len(found) == len(kept) == part["num_examples"] == part["statistics"]["images"]
    assert part["rejected"] == {"duplicate key": 100 - len(kept)}


def test_a_kill_between_both_conversions_changes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("detailclip_jax.convert.rows.PER_SHARD", 7)
    repeating(tmp_path / "in", np.random.default_rng(0))
    prepared(tmp_path / "in", tmp_path / "whole", kind="csv", key_column="key")
    options = Options(key_column="key")
    request = Request("csv", (str(tmp_path / "in"),), str(tmp_path / "out"), options=options)
    started = begin(request)
    for number in output_shard.unconverted(started):
        output_shard.convert(started, number)
    again = output_shard.exclude_repeated(started)
    assert len(again) > 5 and output_shard.unconverted(started) == again
    output_shard.convert(started, again[0])  # and killed here
    local_engine.run(begin(request), 1, QUIET)
    finish(begin(request))
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_statistics_are_those_of_a_plain_count(tmp_path):
    texts = ["", "  ", "a cat", "a dog " * 50, "picture"]
    members = [trees.sample(f"{n}", n, text) for n, text in enumerate(texts)]
    trees.write_tar(tmp_path / "x.tar", trees.flat(members))
    trees.write_tar(tmp_path / "y.tar", [("p.png", trees.png(1, 100, 33))])
    part = prepared(tmp_path, tmp_path / "out", 3)
    lengths = [len(Tokenizer().encode(text)) if text.strip() else 0 for text in texts]
    counted = part["statistics"]["captions"]["captions"]
    assert counted["tokens"] == {str(n): lengths.count(n) for n in sorted(set(lengths))}
    assert (counted["count"], counted["empty"], counted["truncated"]) == (5, 2, 1)
    assert part["statistics"]["width"] == {"0": 5, "96": 1}
    assert part["statistics"]["height"] == {"0": 5, "32": 1}
    assert part["statistics"]["without_caption"] == 3
    source = Records(tmp_path / "out", "train")
    assert part["statistics"]["image_bytes"] == sum(len(source[n]["image"]) for n in range(6))


def test_counts_add_up_and_quantiles_are_reached():
    assert statistics.total([{"a": 1, "b": {"x": 2}}, {"b": {"x": 3, "y": 1}}]) == {"a": 1, "b": {"x": 5, "y": 1}}
    assert list(statistics.ordered({"10": 1, "9": 1, "b": 1, "a": 1})) == ["a", "b", "9", "10"]
    histogram = {"0": 50, "10": 45, "20": 5}
    assert [statistics.quantile(histogram, share) for share in (0.05, 0.5, 0.51, 0.95, 1.0)] == [0, 0, 10, 10, 20]
    assert statistics.quantile({}, 0.5) == 0


def test_rejects_are_counted_and_listed_in_the_order_of_the_source(tmp_path):
    broken = trees.jpeg(1)[:-40]
    trees.write_tar(tmp_path / "x.tar", [("a.jpg", b""), ("b.jpg", b"text"), *trees.sample("c", 3), ("d.jpg", broken)])
    trees.write_tar(tmp_path / "y.tar", [("e.txt", b"alone"), ("f.jpg", trees.jpeg(2)), ("f.cls", b"seven")])
    part = prepared(tmp_path, tmp_path / "out")
    listed = [json.loads(line) for line in (tmp_path / "out/train-rejected.jsonl").read_text().splitlines()]
    assert [(key, reason) for key, reason, _ in listed] == [
        ("x/a", "empty"),
        ("x/b", "not an image"),
        ("x/d", "truncated or damaged"),
        ("y/e", "no image"),
        ("y/f", "bad label"),
    ]
    assert part["num_rejected"] == 5
    assert part["num_examples"] == 1


def test_an_example_without_caption_is_kept_or_rejected(tmp_path):
    trees.write_tar(tmp_path / "x.tar", [("a.jpg", trees.jpeg(1)), ("a.txt", b" "), *trees.sample("b", 2)])
    assert prepared(tmp_path / "x.tar", tmp_path / "kept")["num_examples"] == 2
    part = prepared(tmp_path / "x.tar", tmp_path / "rejected", require_caption=True)
    assert (part["num_examples"], part["rejected"]) == (1, {"no caption": 1})


def test_the_header_alone_can_be_believed(tmp_path):
    trees.write_tar(tmp_path / "x.tar", [("a.jpg", trees.jpeg(1)[:-40]), ("b.jpg", b"text")])
    part = prepared(tmp_path / "x.tar", tmp_path / "out", check="header")
    assert (part["num_examples"], part["rejected"]) == (1, {"not an image": 1})


def test_an_image_that_training_would_refuse_is_refused_by_its_header():
    file = io.BytesIO()
    Image.new("1", (8_001, 8_000)).save(file, "PNG")
    with pytest.raises(examples.Rejected, match="too large: 8001 x 8000 pixels"):
        image_checks.checked(file.getvalue(), Options(check="header"))


@pytest.mark.parametrize(("size", "expected"), [((40, 20), (40, 20)), ((80, 20), (40, 10)), ((3, 400), (1, 40))])
def test_larger_images_are_made_smaller_and_others_stay_as_they_are(tmp_path, size, expected):
    trees.write_tar(tmp_path / "x.tar", [("a.png", trees.png(1, *size))])
    part = prepared(tmp_path / "x.tar", tmp_path / "out", max_side=40)
    image = Records(tmp_path / "out", "train")[0]["image"]
    assert Image.open(io.BytesIO(image)).size == expected
    assert (image == trees.png(1, *size)) == (size == expected)
    assert part["options"]["max_side"] == 40


def test_the_copy_of_a_thin_jpeg_has_its_whole_length():
    halves, file = np.zeros((4000, 1, 3), np.uint8), io.BytesIO()
    halves[2000:] = 255
    Image.fromarray(halves).save(file, "JPEG")
    copy, width, height = image_checks.checked(file.getvalue() + b"\n", Options(max_side=100))
    column = np.asarray(Image.open(io.BytesIO(copy)))[:, 0]
    assert (width, height) == (1, 100) and column[:40].max() < 20 and column[-40:].min() > 235


@pytest.mark.parametrize("limit", [1, 7, 8, 20, 21, 100])
def test_a_limit_takes_the_first_examples(tars, tmp_path, limit):
    prepared(tars, tmp_path / "out", 1, limit=limit)
    source = [f"{tar:05d}/{tar:05d}{n:04d}" for tar in range(3) for n in range(7)]
    assert keys(tmp_path / "out") == source[:limit]


def test_shards_without_examples_are_read(tars, tmp_path):
    trees.write_tar(tars / "00001.tar", [("a.jpg", b"no image")])
    part = prepared(tars, tmp_path / "out")
    assert [one["num_examples"] for one in part["shards"]] == [7, 0, 7]
    assert len(keys(tmp_path / "out")) == 14


# Restarts


class Killed(BaseException):
    """Raised at a chosen call, as a kill would come."""


def interrupted_after(num_calls):
    left = iter(range(num_calls))

    def tell(*counts):
        if next(left, None) is None:
            raise Killed

    return tell


def run_until_killed(job, num_calls):
    """Converts as far as so many examples go."""
    tell = interrupted_after(num_calls)
    for number in output_shard.unconverted(job):
        output_shard.convert(job, number, tell)


def test_wherever_it_is_killed_a_restart_ends_with_the_same_bytes(tars, tmp_path):
    prepared(tars, tmp_path / "whole")
    expected = contents(tmp_path / "whole")
    for num_calls in range(0, 21, 2):
        out = tmp_path / f"killed-{num_calls}"
        request = Request("webdataset", (str(tars),), str(out))
        with pytest.raises(Killed):
            run_until_killed(begin(request), num_calls)
        job = begin(request)
        local_engine.run(job, 1, QUIET)
        finish(job)
        assert contents(out) == expected
        assert not request.work.exists()


def test_finished_shards_are_not_done_again(tars, tmp_path):
    request = Request("webdataset", (str(tars),), str(tmp_path / "out"))
    with pytest.raises(Killed):
        run_until_killed(begin(request), 7 + 7 + 3)
    job = begin(request)
    assert output_shard.unconverted(job) == [2]
    written = [job.output(number).stat().st_mtime_ns for number in range(2)]
    local_engine.run(job, 1, QUIET)
    assert [job.output(number).stat().st_mtime_ns for number in range(2)] == written
    assert finish(job)["num_examples"] == 21


def test_a_lost_output_shard_is_made_again(tars, tmp_path):
    request = Request("webdataset", (str(tars),), str(tmp_path / "out"))
    job = begin(request)
    local_engine.run(job, 1, QUIET)
    job.output(2).unlink()
    assert output_shard.unconverted(job) == [2]


def test_shards_that_another_wrote_are_not_mixed_with(tars, tmp_path):
    write_records(tmp_path / "out", [{"image": b"x"}])
    with pytest.raises(ValueError, match="already exists, and was not written by this command"):
        begin(Request("webdataset", (str(tars),), str(tmp_path / "out")))


def test_a_kill_after_the_last_byte_leaves_nothing_behind(tars, tmp_path):
    prepared(tars, tmp_path / "out")
    request = Request("webdataset", (str(tars),), str(tmp_path / "out"))
    request.work.mkdir()
    with pytest.raises(AlreadyThere):
        begin(request)
    assert not request.work.exists()


@pytest.mark.parametrize("change", [{"max_side": 99}, {"clean": "slip"}, {"limit": 5}])
def test_another_request_does_not_go_on(tars, tmp_path, change):
    output_shard.convert(begin(Request("webdataset", (str(tars),), str(tmp_path / "out"))), 0)
    with pytest.raises(ValueError, match=f"{next(iter(change))}: .* before, {next(iter(change.values()))!r} now"):
        begin(Request("webdataset", (str(tars),), str(tmp_path / "out"), options=Options(**change)))


def test_a_plan_survives_writing(tars, tmp_path):
    request = Request("webdataset", (str(tars),), str(tmp_path / "out"), options=Options(ids=("a", "b")))
    assert begin(request, 3) == begin(request, 3)


def test_a_source_that_cannot_be_planned_leaves_nothing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere.* does not exist"):
        begin(Request("webdataset", (str(tmp_path / "nowhere"),), str(tmp_path / "out")))
    assert not (tmp_path / "out" / ".prepare-train").exists()


def test_the_disk_s_errors_stop_the_run_and_damage_does_not(tars, tmp_path, monkeypatch):
    job = begin(Request("webdataset", (str(tars),), str(tmp_path / "out")))
    monkeypatch.setattr("os.fsync", raise_full)
    with pytest.raises(OSError, match="No space left"):
        output_shard.convert(job, 0)
    assert output_shard.unconverted(job) == [0, 1, 2]
    assert not list(job.request.work.glob("*.partial"))


def test_a_shard_that_cannot_be_written_is_an_error_of_the_disk(tars, tmp_path, monkeypatch):
    job = begin(Request("webdataset", (str(tars),), str(tmp_path / "out")))
    full = tmp_path / "full"
    full.symlink_to("/dev/full")
    monkeypatch.setattr(output_shard, "partial_of", lambda *places: full)
    with pytest.raises(OSError, match=r"full cannot be written: .*No space left"):
        output_shard.convert(job, 0)
    assert output_shard.unconverted(job) == [0, 1, 2]


def test_a_shard_that_is_interrupted_leaves_nothing(tars, tmp_path):
    job = begin(Request("webdataset", (str(tars),), str(tmp_path / "out")))

    def stop(*counts):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        output_shard.convert(job, 0, stop)
    assert not list(job.request.work.glob("*.partial"))


def test_files_that_are_written_at_once_have_names_of_their_own(tmp_path):
    assert files.partial_of(tmp_path / "a") != files.partial_of(tmp_path / "a")


def test_a_restart_from_another_folder_is_the_same_request(tmp_path, monkeypatch):
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path)
    given = prepare.parser().parse_args(["csv", "t.csv", "--out", "out", "--images", "below"])
    request = prepare.request_of(given)
    assert request.out == str(tmp_path / "out")
    assert request.options.images == str(tmp_path / "below")


def raise_full(file):
    raise OSError(28, "No space left on device")


# What is said at the end


def test_splits_stand_beside_each_other(tars, tmp_path):
    prepared(tars, tmp_path / "out", 2)
    prepared(tars, tmp_path / "out", 3, split="val", limit=9)
    assert {name: part["num_examples"] for name, part in load(str(tmp_path / "out"))["splits"].items()} == {
        "train": 21,
        "val": 9,
    }
    assert len(keys(tmp_path / "out", "val")) == 9


def test_known_counts_are_compared():
    line = known_sizes.comparison("coco-val2017", 4_950, 30)
    assert line == "coco-val2017 has 5,000 examples: this set has 99.0% of them, 20 are not in the source"
    assert "DeCLIP" in known_sizes.comparison("yfcc15m-declip", 1, 0)
    assert known_sizes.comparison("", 1, 1) == ""


def test_progress_says_rates_and_what_is_left():
    progress = local_engine.Progress([10, 10, 20], [0, 1, 2], QUIET)
    progress.add(100, 2_000_000, 3)
    assert progress.line(2.0).endswith("100 examples | 50 images/s | 1.0 MB/s | eta ? | 3 rejected")
    progress.done(0)
    assert progress.line(2.0).startswith("1/3 shards")
    assert "eta 0:06" in progress.line(2.0)  # a quarter took two seconds


def test_a_long_plan_says_how_far_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(local_engine, "EVERY_PLAIN", 0.01)
    said = io.StringIO()
    request = Request("csv", ("x.csv",), str(tmp_path))
    trees.write(request.work / "rows-00000", b"")
    with local_engine.planning(request, Console(stream=said)):
        while "plan 10,000 examples | 0:0" not in said.getvalue():
            pass


# The command


def test_the_command_prepares_and_says_what_there_is(tars, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["webdataset", "--out", str(out), "--dataset", "cc3m", str(tars), "--workers", "1"]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "examples    21 in 3 shards" in said
    assert "cc3m has 3,318,333 examples: this set has 0.0% of them" in said
    assert main(command) == 0
    assert "already has the split train; nothing to do" in capsys.readouterr().out
    assert main([*command, "--max-side", "9"]) == 2
    assert "already has the split train, prepared by a different request" in capsys.readouterr().err
    assert load(str(out))["splits"]["train"]["dataset"] == "cc3m"


def test_a_set_of_an_earlier_version_with_an_option_that_is_gone_is_the_same_set(tars, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["webdataset", "--out", str(out), str(tars), "--workers", "1"]) == 0
    record = json.loads((out / "dataset.json").read_text())
    record["splits"]["train"]["options"]["follow_links"] = False
    (out / "dataset.json").write_text(json.dumps(record))
    assert main(["webdataset", "--out", str(out), str(tars), "--workers", "1", "--follow-links"]) == 0
    shown = capsys.readouterr()
    assert "nothing to do" in shown.out and "--follow-links has no effect any more" in shown.err


def test_the_source_is_asked_for_first(capsys):
    assert main([]) == 2
    assert "SOURCE is missing, for example: prepare webdataset" in capsys.readouterr().err


def test_a_damaged_input_shard_is_loud(tars, tmp_path, capsys):
    trees.write(tars / "00001.tar", b"no tar")
    assert main(["webdataset", str(tars), "--out", str(tmp_path / "out"), "--workers", "1"]) == 0
    assert "WARNING: damage in 1 input shard;" in capsys.readouterr().out


def test_nothing_accepted_is_a_failure(tmp_path, capsys):
    trees.write_tar(tmp_path / "x.tar", [("a.jpg", b"no image")])
    assert main(["webdataset", str(tmp_path / "x.tar"), "--out", str(tmp_path / "out"), "--workers", "1"]) == 1
    assert "no example was accepted" in capsys.readouterr().err


def test_verify_finds_what_changed(tars, tmp_path, capsys):
    out = tmp_path / "out"
    trees.write_tar(tars / "00003.tar", trees.sample("z", 1))
    prepared(tars, out)
    assert main(["verify", str(out)]) == 0
    (out / "train-00007.arrayrecord").write_bytes((out / "train-00000.arrayrecord").read_bytes())
    (out / "train-00001.arrayrecord").unlink()
    data = bytearray((out / "train-00002.arrayrecord").read_bytes())
    data[len(data) // 2] ^= 1
    (out / "train-00002.arrayrecord").write_bytes(data)
    (out / "train-00003.arrayrecord").write_bytes(data[:-1])
    capsys.readouterr()
    assert main(["verify", str(out)]) == 1
    said = capsys.readouterr().out
    for problem in ("00001.arrayrecord: is missing", "00002.arrayrecord: has another checksum", "4 problems"):
        assert problem in said
    assert "00003.arrayrecord: has 131071 bytes instead of 131072" in said
    assert "00007.arrayrecord: is not in dataset.json" in said


@pytest.mark.parametrize("command", ["verify", "stats"])
def test_a_folder_without_a_set_is_named(command, tmp_path, capsys):
    assert main([command, str(tmp_path)]) == 2
    assert "contains no prepared set" in capsys.readouterr().err


def test_stats_draws_what_there_is(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    members = [trees.sample(f"{n}", n, f"caption {n} €") for n in range(5)]
    trees.write_tar(tmp_path / "x.tar", [*trees.flat(members), ("bad.jpg", b"x")])
    prepared(tmp_path / "x.tar", tmp_path / "out", 2, caption_columns=("txt", "$^$"))  # no formula of matplotlib
    assert main(["stats", str(tmp_path / "out")]) == 0
    assert "rejected    1 of 6: 1 x not an image, for example x/bad: " in capsys.readouterr().out
    with Image.open(tmp_path / "out/train-contact-sheet.png") as sheet:
        assert sheet.size == (set_report.COLUMNS * set_report.TILE, 204)  # an image and three lines
        tile = np.asarray(sheet)[: set_report.TILE, : set_report.TILE]
    assert (tile != 255).any()
    with Image.open(tmp_path / "out/train-statistics.png") as figure:
        assert figure.width > 1000


def test_the_contact_sheet_has_the_beginning_of_every_caption():
    captions = ["a frog " * 9, " ", "two\nfrogs", *"abc"]
    assert set_report.caption_lines({"captions": captions}) == ["a frog a frog a frog a fro", "two frogs", *"abc"]
    assert [len(line) for line in set_report.caption_lines({"captions": captions[:2]})] == [22, 25, 13]
    assert set_report.caption_lines({"captions": [""], "key": "k"}) == ["k"]
