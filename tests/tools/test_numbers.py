"""README and docs show the measured numbers that docs/numbers.json holds."""

import hashlib
import json
import re
from pathlib import Path

import page_numbers as numbers
import pytest

ROOT = Path(__file__).parents[2]


def test_the_documents_show_what_the_data_file_holds():
    data = json.loads((ROOT / "docs/numbers.json").read_text())
    held = {mark: lines for made in data.values() for mark, lines in made["blocks"].items()}
    assert numbers.marked() == held


def test_the_figures_are_those_that_were_measured():
    for name, made in json.loads((ROOT / "docs/numbers.json").read_text()).items():
        for file, expected in made["files"].items():
            assert hashlib.sha256((ROOT / file).read_bytes()).hexdigest() == expected, (name, file)


def test_every_number_is_declared_once():
    names = [number.name for number in numbers.NUMBERS]
    assert len(set(names)) == len(names) and set(json.loads(numbers.DATA.read_text())) == set(names)
    marks = re.findall(r"<!-- numbers (\S+) -->", "".join((ROOT / name).read_text() for name in numbers.DOCUMENTS))
    assert len(set(marks)) == len(marks) and {numbers.owner(mark) for mark in marks} == set(names)


def test_texts_are_written_from_what_the_commands_leave(tmp_path):
    """Records as the benchmarks and `compare` write them, with numbers that are easy to follow."""

    def write(name, value):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.json").write_text(json.dumps(value))

    for remat, batch in numbers.MEMORY_ROWS:
        write(f"{remat}-{batch}", [{"argument_bytes": 2**31, "temp_bytes": 2**30, "total_bytes": 3 * 2**30}])
    assert numbers.memory(tmp_path)["memory.table"][2] == "| `remat=dots`, 32 pairs | 2.00 GiB | 1.00 GiB | 3.00 GiB |"
    for size in numbers.SIZES:
        for gap, seconds in zip(numbers.GAPS, (0.02, 0.005)):
            write(f"{size}-{gap}", [{"stage": "read"}, {"stage": "all", "seconds_per_image": seconds}])
    assert numbers.originals(tmp_path)["originals.table"][2] == "| 1024 x 768 | 20.0 ms | 5.0 ms | 4.0 |"
    for place in range(3):
        cpu = {"straightforward": [14.25, 14, 15], "ours": [10.8, 10, 11], "times_as_fast": [1.32, 1.23, 1.34]}
        write(str(place), {"cpu": cpu, "clock": {"times_as_fast": [1.3, 1.2, 1.4]}})
    last = numbers.straightforward(tmp_path)["straightforward.table"][-1]
    assert last == "| S/16, 77 | 6 | 14.2 / 10.8 | 1.32 (1.23-1.34) | 1.30 |"
    metrics = dict.fromkeys(numbers.METRICS.values(), (0.218, 0.035))
    results = [
        {"method": row, "weights": weights, "metric": metric, "mean": mean, "std": std, "num_seeds": 3}
        for row in ("clip", numbers.PAPER)
        for weights in ("student", "ema")
        for metric, (mean, std) in metrics.items()
    ]
    write("rows/comparison", {"results": results, "costs": {"clip": "0.161 GFLOP/image, 30 s"}})
    clip, *_, pixels = numbers.comparison(tmp_path)["comparison.table"][2:]
    assert clip == f"| `clip` | {' | '.join(['21.8 ± 3.5'] * 6)} | 0.161 |"
    assert pixels == "| raw pixels |  |  |  |  |  |  |  |"
    for folder in ("scratch", "long", "continued"):
        write(f"{folder}/comparison", {"results": results, "costs": {}})
    assert numbers.factors(tmp_path)["factors.long"][2] == (
        "| `clip` | 21.8 ± 3.5 | 21.8 ± 3.5, 21.8 ± 3.5 | 21.8 ± 3.5 | 21.8 ± 3.5 |"
    )


def test_a_difference_between_methods_is_that_of_equal_seeds(tmp_path):
    """CLIP's scores differ by seed, the others are 3, 2 and 1 points above it in every metric: 2 +- 4.30 / sqrt(3)."""
    for row, seed, path in numbers.later_runs(numbers.LATER_SEEDS):
        value = 0.1 * seed + (0 if row == "clip" else 0.01 * (3 - seed))
        student = [
            {"task": task, "metric": metric, "weights": "student", "value": value}
            for task, metric in (name.split("/") for name in numbers.METRICS.values())
        ]
        folder = tmp_path / "rows" / path
        folder.mkdir(parents=True)
        teacher = [{**one, "weights": "ema", "value": 0.0} for one in student]
        (folder / "results.json").write_text(json.dumps({"results": student + teacher}))
    head, _, *rows = numbers.differences(tmp_path, "clip")
    assert head.startswith("| method, minus `clip` | zero-shot | image to text R@1 |")
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
    assert numbers.interval(values) == expected
