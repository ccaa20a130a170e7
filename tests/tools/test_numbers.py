"""README and docs show the measured numbers that docs/numbers.json holds."""

import hashlib
import json
import re
from pathlib import Path

import page_numbers as numbers
import pytest
from pages import making, results, tables

ROOT = Path(__file__).parents[2]


def test_the_documents_show_what_the_data_file_holds():
    data = json.loads((ROOT / "docs/numbers.json").read_text())
    held = {mark: lines for made in data.values() for mark, lines in made["blocks"].items()}
    found = [match for name in making.DOCUMENTS for match in making.MARKS.finditer((ROOT / name).read_text())]
    assert {match["name"]: match["text"].splitlines() for match in found} == held


def test_the_figures_are_those_that_were_measured():
    for name, made in json.loads((ROOT / "docs/numbers.json").read_text()).items():
        for file, expected in made["files"].items():
            assert hashlib.sha256((ROOT / file).read_bytes()).hexdigest() == expected, (name, file)


def test_every_number_is_shown_once():
    names = set(making.NUMBERS)
    assert set(json.loads(making.DATA.read_text())) == names
    marks = re.findall(r"<!-- numbers (\S+) -->", "".join((ROOT / name).read_text() for name in making.DOCUMENTS))
    assert len(set(marks)) == len(marks) and {mark.partition(".")[0] for mark in marks} == names


def texts(folder, name, records=()):
    """The marks of a number from its folder, with these records of its commands."""
    for place, record in enumerate(records):
        (folder / f"{place}.json").write_text(json.dumps(record))
    return making.texts_of(making.NUMBERS[name], folder)


def leave_runs(folder, paths, score):
    """Writes the runs that `compare` leaves; `score` is that of all metrics, by the place of the path."""
    for place, path in enumerate(paths):
        (folder / path).mkdir(parents=True)
        scores = [
            {"task": task, "metric": metric, "weights": weights, "value": score(place) if weights == "student" else 0.0}
            for task, metric in (name.split("/") for name in numbers.METRICS.values())
            for weights in ("student", "ema")
        ]
        (folder / path / "results.json").write_text(json.dumps({"step": 300, "results": scores}))
        (folder / path / "cost.json").write_text(json.dumps({"gflop_per_image": 0.161, "seconds": 30}))


def test_texts_are_written_from_what_the_commands_leave(tmp_path):
    """Records as the benchmarks write them, with numbers that are easy to follow."""
    planned = [{"argument_bytes": 2**31, "temp_bytes": 2**30, "total_bytes": 3 * 2**30}]
    lines = texts(tmp_path, "memory", [planned] * 4)["memory.table"]
    assert lines[0] == "| | arguments | temporaries | together |" and lines[1] == "|---|---|---|---|"
    assert lines[2] == "| `remat=dots`, 32 pairs | 2.00 GiB | 1.00 GiB | 3.00 GiB |"
    stages = [[{"stage": "read"}, {"stage": "all", "seconds_per_image": seconds}] for seconds in (0.02, 0.005)]
    lines = texts(tmp_path, "originals", stages * 3)["originals.table"]
    assert lines[2] == "| 1024 x 768 | 20.0 ms | 5.0 ms | 4.0 |"
    cpu = {"straightforward": [14.25, 14, 15], "ours": [10.8, 10, 11], "times_as_fast": [1.32, 1.23, 1.34]}
    record = {"cpu": cpu, "clock": {"times_as_fast": [1.3, 1.2, 1.4]}}
    lines = texts(tmp_path, "straightforward", [[record]] * 3)["straightforward.table"]
    assert lines[-1] == "| S/16, 77 | 6 | 14.2 / 10.8 | 1.32 (1.23-1.34) | 1.30 |"
    folder = tmp_path / "overview"
    for path, step, weights, readout in (
        ("demo", "600", "ema", "gem"),
        ("overview/detail", "2834", "student", "plain"),
    ):
        (tmp_path / path).mkdir(parents=True)
        choice = {"readout": readout, "mean_iou": {readout: 0.179, "tips": 0.1}, "inverted": {readout: 0.01}}
        (tmp_path / path / "readouts.json").write_text(json.dumps({step: {weights: choice}}))
    caption = " ".join(texts(folder, "overview")["overview.caption"])
    assert caption.startswith("*`python -m detailclip_jax.visualize")
    assert "`gem` (mIoU 17.9, 1 % of the words inverted) for the demo's" in caption
    assert "`plain` (mIoU 17.9, 1 % of the words inverted) for `configs/detail.py`" in caption


def test_tables_of_methods_are_written_from_their_runs(tmp_path):
    """Runs as `compare` leaves them: the seeds have 18.3, 21.8 and 25.3 in every metric."""
    paths = [path for entry in numbers.COMPARED for path in results.runs(entry, 3)]
    leave_runs(tmp_path, paths, lambda place: 0.183 + 0.035 * (place % 3))
    untrained = {"method": "untrained", "weights": "student", "metric": "kept_objects/share"}
    pixels = {**untrained, "method": "raw pixels", "mean": 0.5, "std": 0.0, "num_seeds": 1}
    made = {"results": [{**untrained, "mean": 0.218, "std": 0.035, "num_seeds": 3}, pixels]}
    (tmp_path / "rows/comparison.json").write_text(json.dumps(made))
    clip, *_, untrained, pixels = texts(tmp_path, "comparison")["comparison.table"][2:]
    assert clip == f"| `clip` |{' 21.8 ± 3.5 |' * 6} 0.161 |"
    assert untrained == "| untrained |  |  |  |  |  | 21.8 ± 3.5 |  |"
    assert pixels == "| raw pixels |  |  |  |  |  | 50.0 |  |"
    for place, (_, entries) in numbers.FACTORS.items():
        leave_runs(tmp_path, [path for entry in entries for path in results.runs(entry, 3, place)], lambda place: 0.218)
    lines = texts(tmp_path, "factors")["factors.long"]
    assert lines[2] == "| `clip` | 21.8 ± 0.0 | 21.8 ± 0.0, 21.8 ± 0.0 | 21.8 ± 0.0 | 21.8 ± 0.0 |"


def test_a_difference_between_methods_is_that_of_equal_seeds(tmp_path):
    """CLIP's scores differ by seed, the others are 3, 2 and 1 points above it in every metric: 2 +- 4.30 / sqrt(3)."""
    for entry in numbers.LATER:
        above = 0.0 if entry == "clip" else 0.01
        leave_runs(tmp_path, results.runs(entry, 3), lambda seed, above=above: 0.1 * seed + above * (3 - seed))
    found = results.scored(tmp_path, {row: results.runs(entry, 3) for entry, row in numbers.LATER.items()})
    head, _, *rows = tables.of_differences("minus `clip`", numbers.METRICS, found, baseline="`clip`")
    assert head.startswith("| minus `clip` | zero-shot | image to text R@1 |")
    assert rows[0] == f"| `siglip` |{' +2.0 ± 2.5 |' * 6}" and len(rows) == len(numbers.LATER) - 1


def test_the_interval_of_two_rows_is_that_of_their_pairs():
    """The third row equals the first but for a constant, so its residuals are those of the first."""
    pairs = [[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]]
    assert numbers.half_of_rows(pairs) == pytest.approx(4.303 / 3**0.5, rel=1e-3)
    three = [*pairs, [11.0, 12.0, 13.0]]  # residuals -1/3, 0, 1/3 twice and 2/3, 0, -2/3; t of four degrees is 2.776
    assert numbers.half_of_rows(three) == pytest.approx(2.776 * (2 / 3 * (4 / 3) / 4) ** 0.5, rel=1e-3)


@pytest.mark.parametrize(
    "values, expected",
    [
        ([1.0, 2.0, 3.0], "+2.0 ± 2.5"),  # t of two degrees of freedom is 4.303
        ([-1.9, -2.0, -2.1], "**-2.0 ± 0.2**"),
        ([2.0, 4.0], "+3.0 ± 12.7"),
        ([-0.04, -0.02, 0.02], "+0.0 ± 0.1"),
    ],
)
def test_an_interval_is_bold_where_it_does_not_contain_zero(values, expected):
    assert tables.interval(values) == expected


def test_columns_of_a_table_are_chosen_by_their_titles():
    lines = tables.table(["method", "a", "b"], [("`clip`", ["1.0 ± 0.1", "2.0"])])
    assert tables.only(lines, ["b"]) == tables.table(["method", "b"], [("`clip`", ["2.0"])])
