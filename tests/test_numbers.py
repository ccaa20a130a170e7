"""README and docs show the measured numbers that docs/numbers.json holds, and an old number is told."""

import importlib.util
import json
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def numbers():
    spec = importlib.util.spec_from_file_location("numbers", ROOT / "docs/numbers.py")
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


def test_what_is_copied_by_hand_is_taken_from_between_the_marks(numbers, house, monkeypatch, capsys):
    by_hand = numbers.NUMBERS[0]._replace(blocks=None)
    monkeypatch.setattr(numbers, "NUMBERS", (by_hand,))
    assert numbers.main(["--only=answer"]) == 0 and "--take=answer" in capsys.readouterr().out
    assert numbers.main(["--take=answer"]) == 0
    assert json.loads(numbers.DATA.read_text())["answer"]["blocks"] == {"answer.line": ["none"]}


@pytest.mark.parametrize("flag", ["--only=answr", "--take=answr"])
def test_a_number_that_there_is_not_is_refused_by_name(numbers, house, flag, capsys):
    assert numbers.main([flag]) == 2
    assert "unknown number 'answr'; known: answer, slow" in capsys.readouterr().err
