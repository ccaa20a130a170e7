"""README and docs show the measured numbers that docs/numbers.json holds, and an old number is told."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def numbers():
    spec = importlib.util.spec_from_file_location("numbers", ROOT / "docs/measure.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def house(numbers, tmp_path, monkeypatch):
    """A small repository with one number, whose command writes what `code.txt` holds."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "code.txt").write_text("41.5")
    (tmp_path / "README.md").write_text("Before.\n\n<!-- numbers answer.line -->\nnone\n<!-- end -->\n\nBehind.\n")
    (tmp_path / "docs/numbers.json").write_text("{}\n")
    (tmp_path / ".gitignore").write_text("runs/\n")
    for name, value in {
        "ROOT": tmp_path,
        "DATA": tmp_path / "docs/numbers.json",
        "RUNS": tmp_path / "runs",
        "DOCUMENTS": ("README.md",),
    }.items():
        monkeypatch.setattr(numbers, name, value)
    command = """python -c "import shutil; shutil.copy('code.txt', '{out}/answer')" """
    blocks = lambda folder: {"answer.line": [f"The answer is {(folder / 'answer').read_text()}."]}
    answer = numbers.Number("answer", "an answer", 1, ("*.txt",), (command,), blocks)
    monkeypatch.setattr(numbers, "NUMBERS", (answer, answer._replace(name="slow", minutes=300)))
    git(tmp_path, "init", "-q")
    commit(tmp_path)
    return tmp_path


def git(folder, *arguments):
    who = ("-c", "user.name=nobody", "-c", "user.email=nobody@example.org")
    subprocess.run(["git", "-C", str(folder), *who, *arguments], check=True, capture_output=True)


def commit(folder):
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "a state")


def test_the_documents_show_what_the_data_file_holds(numbers):
    data = json.loads((ROOT / "docs/numbers.json").read_text())
    held = {mark: lines for made in data.values() for mark, lines in made["blocks"].items()}
    assert numbers.marked() == held


def test_the_figures_are_those_that_were_measured(numbers):
    for name, made in json.loads((ROOT / "docs/numbers.json").read_text()).items():
        for file, expected in made["files"].items():
            assert numbers.hashlib.sha256((ROOT / file).read_bytes()).hexdigest() == expected, (name, file)


def test_every_number_is_declared_once_and_measures_files_that_are_there(numbers):
    names = [number.name for number in numbers.NUMBERS]
    assert len(set(names)) == len(names) and set(json.loads(numbers.DATA.read_text())) == set(names)
    for number in numbers.NUMBERS:
        for path in number.paths:
            assert list(ROOT.glob(path)), (number.name, path)
    marks = re.findall(r"<!-- numbers (\S+) -->", "".join((ROOT / name).read_text() for name in numbers.DOCUMENTS))
    assert len(set(marks)) == len(marks) and {numbers.owner(mark) for mark in marks} == set(names)


def test_a_number_is_made_once_and_is_old_when_its_code_changes(numbers, house, capsys):
    assert numbers.main([]) == 0
    assert "slow is older than its code: about 300 minutes, make numbers ONLY=slow" in capsys.readouterr().out
    assert (house / "README.md").read_text() == (
        "Before.\n\n<!-- numbers answer.line -->\nThe answer is 41.5.\n<!-- end -->\n\nBehind.\n"
    )
    made = json.loads((house / "docs/numbers.json").read_text())["answer"]
    assert made["blocks"] == {"answer.line": ["The answer is 41.5."]} and made["versions"]["jax"]
    (house / "code.txt").write_text("42")
    numbers.main(["--list"])
    assert "older than its code" in next(line for line in capsys.readouterr().out.splitlines() if "answer" in line)
    assert numbers.main([]) == 1  # not of any commit
    assert "commit first" in capsys.readouterr().err and "41.5" in (house / "README.md").read_text()
    commit(house)
    assert numbers.main(["--only=answer"]) == 0 and "The answer is 42." in (house / "README.md").read_text()
    numbers.main(["--list", "--only=answer"])
    assert "up to date" in capsys.readouterr().out


def test_a_number_goes_on_behind_the_command_that_failed(numbers, house, monkeypatch, capsys):
    first, *_ = numbers.NUMBERS
    fails = """python -c "import sys; sys.exit(3)" """
    monkeypatch.setattr(numbers, "NUMBERS", (first._replace(commands=(*first.commands, fails)),))
    assert numbers.main(["--only=answer"]) == 1
    assert "exit status 3" in capsys.readouterr().err and json.loads(numbers.DATA.read_text()) == {}
    again = first._replace(commands=(fails, "python -c pass"))  # the first is done and not run again
    monkeypatch.setattr(numbers, "NUMBERS", (again,))
    assert numbers.main(["--only=answer"]) == 0 and "41.5" in (house / "README.md").read_text()


def test_the_reader_of_the_list_may_end_before_it(numbers):
    script = f"{sys.executable} docs/measure.py --list | head -1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "" and done.stdout.startswith("number ")


SOURCE = b"""def f(x):
    \"\"\"Doubles.\"\"\"
    if x < 0:
        raise ValueError(f"{x} is negative")  # as the paper says
    console.say("doubling", end="")
    return 2 * x, "name"


class Empty:
    \"\"\"Nothing.\"\"\"
"""


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"Doubles.", b"Multiplies by two."),
        (b'    """Doubles."""\n', b""),
        (b'    """Nothing."""', b"    pass"),
        (b"# as the paper says", b""),
        (b"{x} is negative", b"{x} must not be less than 0"),
        (b'f"{x} is negative"', b'"negative"'),
        (b"doubling", b"computing"),
        (b"2 * x", b"(2*x)"),
    ],
)
def test_what_computes_nothing_makes_no_number_old(numbers, old, new):
    assert old in SOURCE
    assert numbers.digest_of([("a.py", SOURCE)]) == numbers.digest_of([("a.py", SOURCE.replace(old, new))])
    assert numbers.digest_of([("a.txt", SOURCE)]) != numbers.digest_of([("a.txt", SOURCE.replace(old, new))])


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"2 * x", b"3 * x"),
        (b"x < 0", b"x <= 0"),
        (b'"name"', b'"other"'),
        (b"ValueError", b"TypeError"),
        (b"f(", b"g("),
    ],
)
def test_what_computes_makes_it_old(numbers, old, new):
    assert old in SOURCE
    assert numbers.digest_of([("a.py", SOURCE)]) != numbers.digest_of([("a.py", SOURCE.replace(old, new))])


def test_files_that_the_commands_do_not_import_do_not_count(numbers, tmp_path, monkeypatch):
    files = {
        "__init__.py": "",
        "main.py": "from detailclip_jax.room import used",
        "room/__init__.py": "",
        "room/used.py": "def late():\n    import detailclip_jax.room.inner",
        "room/inner.py": "x = 1",
        "room/unused.py": "x = 2",
    }
    for name, text in files.items():
        (tmp_path / "detailclip_jax" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "detailclip_jax" / name).write_text(text)
    (tmp_path / "data.txt").write_text("3")
    monkeypatch.setattr(numbers, "ROOT", tmp_path)
    command = ("python -m detailclip_jax.main --flag",)
    one = numbers.Number("one", "", 1, ("detailclip_jax/room/*.py", "data.txt"), command, dict)
    names = ["data.txt", *(f"detailclip_jax/room/{name}.py" for name in ("__init__", "inner", "used"))]
    assert numbers.measured(one) == names
    monkeypatch.setattr(numbers, "NUMBERS", (one,))
    after = one._replace(commands=(), after=("one",))
    assert numbers.measured(after) == names


def test_every_number_measures_what_its_commands_import(numbers):
    for number in numbers.NUMBERS:
        assert set(numbers.measured(number)) & numbers.imports(number), number.name


def test_texts_are_written_from_what_the_commands_leave(numbers, tmp_path):
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


def test_a_difference_between_methods_is_that_of_equal_seeds(numbers, tmp_path):
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


@pytest.mark.parametrize(
    "values, expected",
    [
        ([1.0, 2.0, 3.0], "+2.0 ± 2.5"),  # t of two degrees of freedom is 4.303
        ([-1.9, -2.0, -2.1], "**-2.0 ± 0.2**"),
        ([2.0, 4.0], "+3.0 ± 12.7"),
        ([-0.04, -0.02, 0.02], "+0.0 ± 0.1"),
    ],
)
def test_an_interval_is_bold_where_it_does_not_contain_zero(numbers, values, expected):
    assert numbers.interval(values) == expected


@pytest.mark.parametrize("flag", ["--only=answr"])
def test_a_number_that_there_is_not_is_refused_by_name(numbers, house, flag, capsys):
    assert numbers.main([flag]) == 2
    assert "unknown number 'answr'; known: answer, slow" in capsys.readouterr().err
