"""Captions joined by key, URL or file name: against a dictionary, in the public layouts, restarts, hostile tables."""

import contextlib
import csv
import gzip
import io
import json
import pathlib
import random
import sqlite3

import msgpack
import prepare_trees as trees
import pyarrow
import pytest
from pyarrow import parquet
from tiny import check_names

from detailclip_jax.convert import joined_captions, output_shard, prepared_set, rows
from detailclip_jax.convert.examples import Raw, Reject, digest_of
from detailclip_jax.convert.job import Options, Shard
from detailclip_jax.convert.parquet import cells
from detailclip_jax.convert.planning import begin
from detailclip_jax.data.sources import Records
from detailclip_jax.prepare import main, parser, request_of

TEXTS = ["a frog", "", "Straße, 猫 and “quotes”", 'a "quoted", text', "émigré  ", "x" * 200]
NASTY = ["http://a.org/ö?q=1,2", "http://a.org/%20", "k", "K", "key with space", "猫/1", 'q"uote', "007", "7"]
JOIN = ("--captions-key", "url=Image Path", "--captions-columns", "raw=raw_caption,long=long_caption")


def run(kind, source, out, *more):
    """The exit code of `prepare`."""
    return main([kind, str(source), "--out", str(out), "--workers", "1", *map(str, more)])


def examples(out):
    source = Records(str(out), "train")
    return {source[index]["key"]: source[index] for index in range(len(source))}


def split(out):
    return prepared_set.load(str(out))["splits"]["train"]


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(pathlib.Path(folder).iterdir()) if path.is_file()}


def write_table(path, rows, names):
    """Rows of texts as parquet, csv (with CRLF), tsv or jsonl, by the suffix; .gz packs it."""
    if path.suffix == ".parquet":
        path.parent.mkdir(exist_ok=True, parents=True)
        parquet.write_table(pyarrow.table({name: [row[n] for row in rows] for n, name in enumerate(names)}), path)
        return path
    text = io.StringIO(newline="")
    if ".jsonl" in path.name:
        text.write("".join(json.dumps(dict(zip(names, row)), ensure_ascii=False) + "\r\n" for row in rows))
    elif ".tsv" in path.name:
        text.write("".join("\t".join(row) + "\n" for row in [names, *rows]))
    else:
        csv.writer(text).writerows([names, *rows])  # lines end with CRLF, texts may have new lines
    data = text.getvalue().encode()
    return trees.write(path, gzip.compress(data) if path.suffix == ".gz" else data)


def tar_of_urls(path, urls, caption="own"):
    members = []
    for number, url in enumerate(urls):
        fields = {} if url is None else {"url": url}
        members += trees.sample(f"{number:09d}", number, caption, **fields)
    return trees.write_tar(path, members)


# Against a dictionary


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ["t.parquet", "t.csv", "t.csv.gz", "t.tsv", "t.jsonl", "t.jsonl.gz"])
def test_a_join_is_that_of_a_dictionary(tmp_path, name, seed):
    draw = random.Random(f"{name}{seed}")
    texts = [*TEXTS, "two\r\nlines", "a\nnew line"] if ".tsv" not in name else TEXTS
    rows = [
        [draw.choice([*NASTY, *map(str, range(20)), ""]), draw.choice(texts), draw.choice(texts)] for _ in range(60)
    ]
    urls = [draw.choice([*NASTY, *map(str, range(30)), None]) for _ in range(25)]
    write_table(tmp_path / name, rows, ["Image Path", "raw_caption", "long_caption"])
    tar_of_urls(tmp_path / "a.tar", urls)
    first: dict[str, list[str]] = {}
    for key, *captions in rows:
        if key:
            first.setdefault(key, captions)

    out = tmp_path / "out"
    more = ("--captions", tmp_path / name, *JOIN, "--captions-min-matched", "0")
    assert run("webdataset", tmp_path / "a.tar", out, *more) == 0
    found = examples(out)
    assert len(found) == len(urls)
    for number, url in enumerate(urls):
        example = found[f"a/{number:09d}"]
        raw, long = first.get(url or "", [None, None])
        assert (example.get("raw"), example.get("long")) == (raw, long)
        assert example["captions"] == ("own",) if raw is None else (raw, long, "own")
    joined = split(out)["joined"]
    assert (joined["matched"], joined["unmatched"]) == (
        sum(url in first for url in urls),
        sum(url not in first for url in urls),
    )
    num_keyed = sum(bool(row[0]) for row in rows)
    assert (joined["rows"], joined["unusable"]) == (len(rows), len(rows) - num_keyed)
    assert joined["doubled"] == num_keyed - len(first)
    unused = [key for key in first if key not in urls]
    assert (joined["unused"], joined["first_keys"]) == (len(unused), unused[:3])


def test_of_several_files_the_first_by_name_counts(tmp_path, capsys):
    for name in ("b", "a"):
        write_table(tmp_path / "captions" / f"{name}.csv", [["1", name]], ["url", "text"])
    tar_of_urls(tmp_path / "a.tar", ["1"])
    more = ("--captions", tmp_path / "captions", "--captions-key", "url", "--captions-columns", "text")
    assert run("webdataset", tmp_path / "a.tar", tmp_path / "out", *more) == 0
    assert examples(tmp_path / "out")["a/000000000"]["text"] == "a"
    assert "1 of 1 image, 0 without a row; 2 rows, 1 doubled" in capsys.readouterr().out


def test_a_name_may_have_several_columns_and_a_cell_several_texts(tmp_path):
    table = pyarrow.table({"url": ["1"], "a": ["one"], "b": [["two", "three"]], "c": ["four"]})
    parquet.write_table(table, tmp_path / "t.parquet")
    tar_of_urls(tmp_path / "a.tar", ["1"])
    more = ("--captions-key", "url", "--captions-columns", "long=a,long=b,c")
    assert run("webdataset", tmp_path / "a.tar", tmp_path / "out", "--captions", tmp_path / "t.parquet", *more) == 0
    example = examples(tmp_path / "out")["a/000000000"]
    assert (list(example["long"]), example["c"]) == (["one", "two", "three"], "four")


def test_a_row_without_a_place_is_a_missing_file(tmp_path):
    """A photo of YFCC100M whose line and hash are unknown."""
    (tmp_path / "rows").write_bytes(msgpack.packb([rows.Row("k")]))
    (found,) = rows.read(Shard("x", str(tmp_path / "rows")), Options(images=str(tmp_path)))
    assert isinstance(found, Reject) and (found.key, found.reason) == ("k", "missing file")


def test_a_blank_cell_leaves_the_image_s_own_caption():
    with contextlib.closing(sqlite3.connect(":memory:")) as database:
        database.execute("CREATE TABLE captions (digest INTEGER, key TEXT, texts BLOB, folder TEXT)")
        row = digest_of("1") - 2**63, "1", msgpack.packb([" ", "a frog"])
        database.execute("INSERT INTO captions VALUES (?, ?, ?, '')", row)
        join = joined_captions.Joined(database, Options(captions_columns=("raw", "long")))
        raw = join(Raw("k", b"", texts={"raw": "a bus"}, match="1"))
        assert isinstance(raw, Raw) and raw.texts == {"raw": "a bus", "long": "a frog"}
        database.execute("DROP TABLE captions")
        with pytest.raises(OSError, match="the index of --captions cannot be read: no such table"):
            join(raw)


def test_an_image_without_any_caption_is_left_out_and_counted(tmp_path):
    tar_of_urls(tmp_path / "a.tar", ["1", "2", "3"], caption="")
    write_table(tmp_path / "t.csv", [["1", "a frog"], ["2", " "]], ["url", "text"])
    more = ("--captions", tmp_path / "t.csv", "--captions-key", "url", "--captions-columns", "text")
    assert run("webdataset", tmp_path / "a.tar", tmp_path / "out", *more) == 0
    assert [*examples(tmp_path / "out")] == ["a/000000000"]
    assert split(tmp_path / "out")["rejected"] == {"no caption": 2}
    rejected = [json.loads(line) for line in (tmp_path / "out" / "train-rejected.jsonl").read_text().splitlines()]
    assert [line[2] for line in rejected] == ["a blank row in --captions for '2'", "no row in --captions for '3'"]


def test_of_a_parquet_one_row_group_is_in_memory(tmp_path):
    texts = [random.Random(n).randbytes(500_000).hex() for n in range(20)]  # 1 MB each, a row group of its own
    parquet.write_table(pyarrow.table({"key": texts}), tmp_path / "t.parquet", row_group_size=1, compression="none")
    before, most = pyarrow.total_allocated_bytes(), 0
    for number, (text,) in enumerate(cells(str(tmp_path / "t.parquet"), ["key"])):
        assert text == texts[number]
        most = max(most, pyarrow.total_allocated_bytes() - before)
    assert most < 8e6


# The public layouts


def test_dreamlip_is_joined_to_tars_of_cc3m_by_url(tmp_path):
    urls = [f"http://x.org/{n}.jpg?a=1,2" for n in range(6)]
    tar_of_urls(tmp_path / "cc3m" / "cc3m-train-0000.tar", urls, caption="alt text")
    captions = ["shortIB", "longIB", "shortSV", "longSV", "shortLLA", "longLLA"]
    names = ["Image Path", "raw_caption", *(f"{name}_captions" for name in captions)]
    rows = [[url, "alt text", *(f"{name} {url}. Two, \nthree." for name in captions)] for url in urls[::-1]]
    table = write_table(tmp_path / "cc3m_3long_3short_1raw_captions_url.csv", rows, names)
    columns = "raw=raw_caption,short=shortSV_captions,long=longIB_captions,long=longSV_captions,long=longLLA_captions"
    more = ("--captions", table, "--captions-key", "url=Image Path", "--captions-columns", columns)
    assert run("webdataset", tmp_path / "cc3m", tmp_path / "out", *more) == 0
    example = examples(tmp_path / "out")["cc3m-train-0000/000000002"]
    assert (example["raw"], example["short"]) == ("alt text", f"shortSV {urls[2]}. Two, \nthree.")
    assert [text.partition(" ")[0] for text in example["long"]] == ["longIB", "longSV", "longLLA"]


def test_llavanext_is_joined_to_tars_of_cc12m_by_key(tmp_path):
    tar_of_urls(tmp_path / "cc12m" / "cc12m-train-0000.tar", ["u1", "u2", "u3"])
    names = ["caption_llava", "caption_llava_short", "caption", "url", "key", "status"]
    rows = [[f"long {n}", f"short {n}", f"alt {n}", f"u{n}", f"{n:09d}", "success"] for n in range(2)]
    table = write_table(tmp_path / "train.jsonl.gz", rows, names)
    columns = "raw=caption,short=caption_llava_short,long=caption_llava"
    more = ("--captions", table, "--captions-key", "key", "--captions-columns", columns)
    assert run("webdataset", tmp_path / "cc12m", tmp_path / "out", *more) == 0
    found = examples(tmp_path / "out")
    assert found["cc12m-train-0000/000000001"]["short"] == "short 1"
    assert "short" not in found["cc12m-train-0000/000000002"]  # keeps its own caption


@pytest.mark.parametrize("with_tar", [True, False])
def test_pixelprose_is_joined_to_the_output_of_img2dataset_by_url(tmp_path, with_tar):
    source = tmp_path / "pairs"
    names = ["uid", "url", "key", "status", "original_caption", "vlm_caption"]
    rows = [["x", f"u{n}", "other", "success", f"alt {n}", f"prose {n}"] for n in range(3)]
    write_table(tmp_path / "data" / "vlm_captions_cc12m_00.parquet", rows, names)
    fields: dict[str, list] = {
        "key": ["a", "b", "c"],
        "url": ["u0", "u1", "u9"],
        "caption": ["0", "1", "2"],
        "status": ["success"] * 3,
    }
    if with_tar:
        trees.write_tar(source / "00000.tar", trees.flat(trees.sample(key, 1) for key in fields["key"]))
    else:
        fields["jpg"] = [trees.jpeg(n) for n in range(3)]
    source.mkdir(exist_ok=True)
    parquet.write_table(pyarrow.table(fields), source / "00000.parquet")
    pattern = str(tmp_path / "data" / "vlm_captions_cc12m_*.parquet")
    more = ("--captions", pattern, "--captions-key", "url", "--captions-columns", "raw=original_caption,vlm_caption")
    assert run("img2dataset-parquet", source, tmp_path / "out", *more) == 0
    found = examples(tmp_path / "out")
    assert [found[f"00000/{key}"].get("vlm_caption") for key in "abc"] == ["prose 0", "prose 1", None]


@pytest.mark.parametrize(("by", "names"), [("path", ["dogs/1.jpg", "cats/1.jpg"]), ("file", ["x/1.jpg", "y/2.jpg"])])
def test_folders_are_joined_by_path_or_by_file_name(tmp_path, by, names):
    for name in ("dogs/1.jpg", "cats/1.jpg") if by == "path" else ("dogs/1.jpg", "cats/2.jpg"):
        trees.write(tmp_path / "images" / name, trees.jpeg())
    write_table(tmp_path / "t.tsv", [[name, f"caption of {name}"] for name in names], ["image", "text"])
    more = ("--captions", tmp_path / "t.tsv", "--captions-key", f"{by}=image", "--captions-columns", "text")
    assert run("imagefolder", tmp_path / "images", tmp_path / "out", *more) == 0
    found = {key: example["text"] for key, example in examples(tmp_path / "out").items()}
    assert sorted(found.values()) == sorted(f"caption of {name}" for name in names)
    assert all(pathlib.PurePath(key).name == pathlib.PurePath(text).name for key, text in found.items())


def test_files_of_the_same_name_keep_their_own_captions(tmp_path, capsys):
    """By path with the folder of the source before it; by file name the rows contradict each other, or are shared."""
    folder = tmp_path / "photos"
    for name in ("a/1.jpg", "b/1.jpg"):
        trees.write(folder / name, trees.jpeg())

    def joined(out, by, names, texts):
        write_table(tmp_path / f"{out}.csv", [list(each) for each in zip(names, texts)], ["image", "text"])
        more = ("--captions", tmp_path / f"{out}.csv", "--captions-key", f"{by}=image", "--captions-columns", "text")
        code = run("imagefolder", folder, tmp_path / out, *more)
        return [example["text"] for example in examples(tmp_path / out).values()] if code == 0 else code

    names = ["photos/a/1.jpg", f"{folder}/b/1.jpg"]
    assert joined("path", "path", names, "AB") == ["A", "B"]
    assert joined("file", "file", names, "AB") == 2
    check_names(capsys.readouterr().err, "'1.jpg'", "'photos/a/1.jpg'", f"'{folder}/b/1.jpg'", "path=image")
    assert joined("same", "file", names, "AA") == ["A", "A"]
    assert "WARNING: 2 images have the captions of 1 row," in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("by", ["url", "key", "path", "file"])
def test_tables_are_joined_by_a_column_without_captions_of_their_own(tmp_path, kind, by):
    folder = tmp_path / "set"
    rows = [[f"{n}.jpg", f"u{n}", f"id{n}"] for n in range(4)]
    for number, (name, *_) in enumerate(rows):
        trees.write(folder / name, trees.jpeg(number))
    write_table(folder / f"images.{kind}", rows, ["image", "url", "key"])
    keys = [row[{"url": 1, "key": 2}.get(by, 0)] for row in rows]
    write_table(folder / "captions.parquet", [[key, f"of {key}"] for key in keys], [by, "text"])
    more = ("--captions", folder / "captions.parquet", "--captions-key", by, "--captions-columns", "text")
    assert run(kind, folder / f"images.{kind}", tmp_path / "out", *more) == 0
    found = examples(tmp_path / "out")
    assert [found[f"id{n}"]["text"] for n in range(4)] == [f"of {key}" for key in keys]


def test_a_file_of_a_tar_has_its_name_and_not_a_lower_case_one(tmp_path):
    names = ["./Dogs/One.JPG", "Dogs/two.Jpeg", "Dogs/three.png"]
    trees.write_tar(tmp_path / "a.tar", [(name, trees.jpeg(n)) for n, name in enumerate(names)])
    for by, keys in (("path", ["Dogs/One.JPG", *names[1:]]), ("file", ["One.JPG", "two.Jpeg", "three.png"])):
        write_table(tmp_path / f"{by}.csv", [[key, f"of {key}"] for key in keys], [by, "text"])
        more = ("--captions", tmp_path / f"{by}.csv", "--captions-key", by, "--captions-columns", "text")
        assert run("webdataset", tmp_path / "a.tar", tmp_path / by, *more) == 0
        found = [example["text"] for example in examples(tmp_path / by).values()]
        assert found == [f"of {key}" for key in keys]


@pytest.mark.parametrize("by", ["key", "path", "file"])
def test_a_parquet_of_img2dataset_with_its_images_is_joined_as_one_with_a_tar(tmp_path, by):
    fields = {
        "key": ["a", "b"],
        "caption": ["0", "1"],
        "status": ["success"] * 2,
        "jpg": [trees.jpeg(n) for n in (0, 1)],
    }
    (tmp_path / "pairs").mkdir()
    parquet.write_table(pyarrow.table(fields), tmp_path / "pairs" / "00000.parquet")
    end = "" if by == "key" else ".jpg"
    write_table(tmp_path / "t.csv", [[f"a{end}", "of a"], [f"b{end}", "of b"]], [by, "text"])
    more = ("--captions", tmp_path / "t.csv", "--captions-key", by, "--captions-columns", "text")
    assert run("img2dataset-parquet", tmp_path / "pairs", tmp_path / "out", *more) == 0
    assert [example["text"] for example in examples(tmp_path / "out").values()] == ["of a", "of b"]


@pytest.mark.parametrize("by", ["number", "key"])
@pytest.mark.parametrize("float_rows", [True, False])
def test_whole_numbers_of_pandas_are_those_of_other_tables(tmp_path, by, float_rows):
    """A column of whole numbers with an empty cell is one of 1.0, 2.0 and NaN."""
    folder = tmp_path / "set"
    trees.write(folder / "x.jpg", trees.jpeg())
    floats, whole = [1.0, 1234567890123.0, float("nan")], ["1", "1234567890123", "x"]
    images, rows = (whole, floats) if float_rows else (floats, whole)
    parquet.write_table(pyarrow.table({"image": ["x.jpg"] * 3, by: images}), folder / "images.parquet")
    parquet.write_table(pyarrow.table({by: rows, "text": ["a", "b", "c"]}), folder / "captions.parquet")
    more = ("--captions", folder / "captions.parquet", "--captions-key", by, "--captions-columns", "text")
    assert run("parquet", folder / "images.parquet", tmp_path / "out", *more) == 0
    assert [example["text"] for example in examples(tmp_path / "out").values()] == ["a", "b"]


def test_an_image_with_a_label_and_no_row_is_left_out_and_counted(tmp_path):
    members = trees.flat([(f"{n}.jpg", trees.jpeg(n)), (f"{n}.cls", b"3")] for n in range(2))
    trees.write_tar(tmp_path / "a.tar", members)
    write_table(tmp_path / "t.csv", [["0", "a frog"]], ["key", "text"])
    more = ("--captions", tmp_path / "t.csv", "--captions-key", "key", "--captions-columns", "text")
    assert run("webdataset", tmp_path / "a.tar", tmp_path / "out", *more) == 0
    assert [example["label"] for example in examples(tmp_path / "out").values()] == [3]
    assert split(tmp_path / "out")["rejected"] == {"no caption": 1}


# Stop and repeat


@pytest.fixture
def source(tmp_path):
    """Three tars, captions for most of their images, and the arguments of the command."""
    tars = tmp_path / "tars"
    for number in range(3):
        tar_of_urls(tars / f"{number}.tar", [f"{number}{n}" for n in range(5)])
    rows = [[f"{number}{n}", f"{n}", "long"] for number in range(3) for n in range(4)]
    table = write_table(tmp_path / "t.csv", rows, ["Image Path", "raw_caption", "long_caption"])
    return ["webdataset", str(tars), "--captions", str(table), *JOIN]


def planned(source, out):
    """The job of the command, killed when it had built the index."""
    request = request_of(parser().parse_intermixed_args([*source, "--out", str(out)]))
    job = begin(request)
    joined_captions.write_index(request, lambda num: None)
    return job


@pytest.mark.parametrize("num_shards", [0, 1])
def test_a_kill_after_the_index_or_a_shard_changes_no_byte(source, tmp_path, num_shards):
    assert main([*source, "--out", str(tmp_path / "whole"), "--workers", "2"]) == 0
    index = planned(source, tmp_path / "out").request.work / joined_captions.INDEX
    before = index.stat()
    killed = index.with_name(f"{joined_captions.INDEX}.0.partial")
    killed.write_bytes(index.read_bytes()[:5000])  # of another run, that was killed while it built the index
    job = planned(source, tmp_path / "out")  # does not build it again
    for number in range(num_shards):
        output_shard.convert(job, number)
    assert (index.stat().st_mtime_ns, index.stat().st_ino) == (before.st_mtime_ns, before.st_ino)
    assert not killed.exists()
    assert main([*source, "--out", str(tmp_path / "out"), "--workers", "1"]) == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert not (tmp_path / "out" / ".prepare-train").exists()


def test_a_half_written_index_is_written_anew(source, tmp_path):
    index = planned(source, tmp_path / "out").request.work / joined_captions.INDEX
    index.rename(index.with_name(f"{joined_captions.INDEX}.0.partial"))
    assert main([*source, "--out", str(tmp_path / "out"), "--workers", "1"]) == 0
    assert split(tmp_path / "out")["joined"]["matched"] == 12


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize("change", ["content", "file", "columns", "key"])
def test_a_run_is_not_continued_with_other_captions(source, tmp_path, change, finished, capsys):
    source = [str(tmp_path / "t*.csv") if each == str(tmp_path / "t.csv") else each for each in source]
    if finished:
        assert main([*source, "--out", str(tmp_path / "out"), "--workers", "1"]) == 0
    else:
        output_shard.convert(planned(source, tmp_path / "out"), 0)
    if change == "content":
        write_table(tmp_path / "t.csv", [["00", "a", "b"]], ["Image Path", "raw_caption", "long_caption"])
    if change == "file":
        write_table(tmp_path / "t2.csv", [["00", "a", "b"]], ["Image Path", "raw_caption", "long_caption"])
    changed = {"columns": JOIN[3], "key": JOIN[1]}.get(change)
    again = [
        {JOIN[3]: "raw=raw_caption", JOIN[1]: "key=Image Path"}[each] if each == changed else each for each in source
    ]
    capsys.readouterr()
    assert main([*again, "--out", str(tmp_path / "out"), "--workers", "1"]) in (1, 2)
    said = capsys.readouterr().err
    assert {"content": "t.csv has changed", "file": "t2.csv is a new file", "columns": "captions_columns"}.get(
        change, "captions_key"
    ) in said


@pytest.mark.parametrize("left", [1000, 60])
def test_a_damaged_parquet_of_captions_is_named_and_works_when_it_is_replaced(tmp_path, left, capsys):
    tar_of_urls(tmp_path / "a.tar", ["1", "2"])
    table = write_table(tmp_path / "t.parquet", [["1", "a" * 9999], ["2", "b" * 9999]], ["url", "text"])
    whole = table.read_bytes()
    table.write_bytes(whole[:40] + b"x" * left + whole[40 + left :] if left == 60 else whole[:-left])
    more = ("--captions", table, "--captions-key", "url", "--captions-columns", "text")
    assert run("webdataset", tmp_path / "a.tar", tmp_path / "out", *more) in (1, 2)
    check_names(capsys.readouterr().err, str(table), "damaged, download it again")
    table.write_bytes(whole)
    assert run("webdataset", tmp_path / "a.tar", tmp_path / "out", *more) == 0


def test_a_finished_set_needs_its_captions_no_more(source, tmp_path, capsys):
    assert main([*source, "--out", str(tmp_path / "out")]) == 0
    (tmp_path / "t.csv").unlink()
    assert main([*source, "--out", str(tmp_path / "out")]) == 0
    assert "nothing to do" in capsys.readouterr().out


# Joins that match little


def test_a_wrong_key_stops_before_an_image_is_converted(tmp_path, capsys):
    tar_of_urls(tmp_path / "a.tar", [f"http://a.org/{n}" for n in range(4)])
    write_table(tmp_path / "t.csv", [[f"http://a.org/{n}", f"{n}.jpg", "a"] for n in range(4)], ["url", "file", "text"])
    more = ("--captions", tmp_path / "t.csv", "--captions-key", "url=file", "--captions-columns", "text")
    out = tmp_path / "out"
    assert run("webdataset", tmp_path / "a.tar", out, *more) == 1
    said = capsys.readouterr().err
    assert "0 of 4 images that were looked at first (in 1 shard, up to 64 each)" in said
    assert "--captions-key KEY=COLUMN; else" in said
    assert "'http://a.org/0'" in said and "'0.jpg'" in said
    assert not list(out.glob("*.arrayrecord"))
    assert run("webdataset", tmp_path / "a.tar", out, *more, "--captions-min-matched", "0") == 0
    assert split(out)["joined"]["unmatched"] == 4


def test_a_join_of_less_than_half_stops_and_is_finished_by_the_same_command_when_allowed(tmp_path, capsys):
    tar_of_urls(tmp_path / "a.tar", map(str, range(10)))
    write_table(tmp_path / "t.csv", [[str(n), "a"] for n in range(4)], ["url", "text"])
    more = ("--captions", tmp_path / "t.csv", "--captions-key", "url", "--captions-columns", "text")
    out = tmp_path / "out"
    assert run("webdataset", tmp_path / "a.tar", out, *more) == 1
    said = capsys.readouterr().err
    assert "4 of 10 images have a row" in said and "all rows are used" in said and "another --out" in said
    assert not (out / "dataset.json").exists()
    (written,) = out.glob("*.arrayrecord")
    before = written.stat().st_mtime_ns
    assert run("webdataset", tmp_path / "a.tar", out, *more, "--captions-min-matched", ".4") == 0
    assert written.stat().st_mtime_ns == before


def test_keys_of_rows_that_no_image_has_are_shown(tmp_path, capsys):
    tar_of_urls(tmp_path / "a.tar", ["0", "8", "9"])
    write_table(tmp_path / "t.csv", [[key, "a"] for key in "00123"], ["url", "text"])
    more = ("--captions", tmp_path / "t.csv", "--captions-key", "url", "--captions-columns", "text")
    assert run("webdataset", tmp_path / "a.tar", tmp_path / "out", *more) == 1
    assert "url of images is '8' or '9', url of unused rows is '1' or '2' or '3'" in capsys.readouterr().err


def test_a_wrong_field_of_images_is_answered_with_their_fields(tmp_path, capsys):
    tar_of_urls(tmp_path / "a.tar", ["1"])
    write_table(tmp_path / "t.csv", [["1", "a"]], ["url", "text"])
    more = ("--captions", tmp_path / "t.csv", "--captions-columns", "text", "--captions-key")
    assert run("webdataset", tmp_path / "a.tar", tmp_path / "out", *more, "uri=url") == 1
    said = capsys.readouterr().err
    assert "uri of images is missing or empty (the fields of an image are caption, key, status, url), url of" in said
    assert run("webdataset", tmp_path / "a.tar", tmp_path / "out", *more, "url") == 0  # with the same --out


# Hostile tables


HOSTILE = {
    "missing.csv": (
        b"url,other\r\n1,a\r\n",
        "has no column text; its columns are url, other.  Name them with --captions-key",
    ),
    "twice.csv": (b"url,text,text\r\n1,a,b\r\n", "has the column text more than once"),
    "half.jsonl": (
        b'{"url": 1.5, "text": "a"}\n',
        "column url: 1.5 (float) is no key, which is a text or a whole number",
    ),
    "missing.jsonl": (b'{"url": "1"}\n', "has no column text; its columns are url"),
    "empty.csv": (b"", "has no column url, text; its columns are none"),
    "header.csv": (b"url,text\n", "has no row of captions"),
    "empty.jsonl": (b"", "has no row of captions"),
    "empty.parquet": (b"", "is not readable as parquet"),
    "text.parquet": (b"url,text\n1,a\n", "is not readable as parquet"),
    "latin.csv": ("url,text\n1,ö\n".encode("latin-1"), "line 2: the byte 0xF6"),
    "quote.csv": (b'url,text\n1,"a\n', "unexpected end of data"),
    "key.jsonl": (b'{"url": ["1"], "text": "a"}\n', "column url: ['1'] (list) is no key, which is a text"),
    "number.jsonl": (b'{"url": "1", "text": 3}\n', "column text: 3 (int) is no caption, which is a text"),
    "object.jsonl": (b'{"url": "1", "text": {"a": 1}}\n', "column text: {'a': 1} (dict) is no caption"),
    "cut.csv.gz": (gzip.compress(b"url,text\n1,a\n" * 99)[:-12], "is truncated or damaged"),
    "captions.txt": (b"1 a\n", "a file that ends in .parquet, .csv, .tsv, .jsonl is required"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_table_that_cannot_be_read_is_one_message_with_its_name(tmp_path, name, capsys):
    data, message = HOSTILE[name]
    trees.write(tmp_path / name, data)
    tar_of_urls(tmp_path / "a.tar", ["1"])
    more = ("--captions", tmp_path / name, "--captions-key", "url", "--captions-columns", "text")
    assert run("webdataset", tmp_path / "a.tar", tmp_path / "out", *more) in (1, 2)
    said = capsys.readouterr().err
    assert name in said and message in said and said.count("error: ") == 1 and "Traceback" not in said
    assert not list((tmp_path / "out").glob(f".prepare-train/{joined_captions.INDEX}*"))


def test_parquet_columns_of_another_type_are_named(tmp_path, capsys):
    parquet.write_table(pyarrow.table({"url": ["1"], "text": [1.5]}), tmp_path / "t.parquet")
    tar_of_urls(tmp_path / "a.tar", ["1"])
    more = ("--captions", tmp_path / "t.parquet", "--captions-key", "url", "--captions-columns", "text")
    assert run("webdataset", tmp_path / "a.tar", tmp_path / "out", *more) in (1, 2)
    assert "t.parquet, column text: 1.5 (float) is no caption" in capsys.readouterr().err


def test_rows_that_are_no_rows_are_counted(tmp_path):
    trees.write(tmp_path / "t.csv", "url,text\r\n1,a\r\n2\r\n3,b,c\r\n\r\n,d\r\n4,e, \r\n")
    tar_of_urls(tmp_path / "a.tar", ["1"])
    more = ("--captions", tmp_path / "t.csv", "--captions-key", "url", "--captions-columns", "text")
    assert run("webdataset", tmp_path / "a.tar", tmp_path / "out", *more) == 0
    joined = split(tmp_path / "out")["joined"]
    assert (joined["rows"], joined["unusable"], joined["doubled"]) == (5, 3, 0)


def test_captions_of_another_format_end_early(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(joined_captions, "MAX_REFUSED", 3)
    trees.write(tmp_path / "t.csv", "url,text\n1,a\n" + "x\n" * 4)
    tar_of_urls(tmp_path / "a.tar", ["1"])
    more = ("--captions", tmp_path / "t.csv", "--captions-key", "url", "--captions-columns", "text")
    assert run("webdataset", tmp_path / "a.tar", tmp_path / "out", *more) in (1, 2)
    assert "4 of the first 5 rows of" in capsys.readouterr().err
