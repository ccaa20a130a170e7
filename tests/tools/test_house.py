"""The measures of the structure, on a package of six files."""

import re
import subprocess
import sys

import house
import pytest

FILES = {
    "__init__.py": "",
    "main.py": '''
"""The command."""
from toy_house.training import step

def main():
    # The only use of `outer`.
    return step.outer(3)

if __name__ == "__main__":
    main()
''',
    "methods/__init__.py": 'METHODS = {"siglip": 1}\n',
    "config/fields.py": 'WEIGHTS: dict = {"gram": 0.0}\n',
    "training/step.py": '''
"""Steps: gram is not counted in a docstring."""
import tarfile
import math as np
from toy_house.losses import square

def outer(given):
    """Two lines of code: the docstring, this blank line

    and the comment below are none.
    """
    found_rows = [given]  # the found ones

    # A comment.
    return train_step(*found_rows) + train_step(1)

def train_step(x):
    return square.square(x)

def use(state, tarfile):
    from jax._src import core
    tarfile.depth = 1
    return tarfile, state.gram, "siglip", "the siglip", np.gram, tarfile._hidden()

class Info(tarfile.TarInfo):
    def _proc_pax(self):
        return self._block(1), self._own()

    def _own(self):
        return self

tarfile.BLOCKSIZE = 1
''',
    "losses/square.py": "def square(x):\n    gram = x * x\n    return gram\n",
}


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    folder = tmp_path_factory.mktemp("house") / "toy_house"
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text.lstrip("\n"))
    return folder


@pytest.fixture(scope="module")
def parsed(package):
    return house.modules(package)


def test_functions_are_counted_with_their_bodies_and_uses(parsed):
    counted, short = house.functions(parsed)
    assert counted["functions and methods"] == 7
    assert counted["body, median lines"] == 1 and counted["body, longest"] == "3 (training/step.py:19:use)"
    assert counted["functions with one use"] == counted["of these, of one or two lines"] == 3
    assert short == ["main.py:4:main", "training/step.py:6:outer", "training/step.py:28:_own"]  # `train_step` has two
    assert counted["of these, called"] == 3


def test_words_are_counted_as_parts_of_identifiers_and_in_prose(parsed):
    rows = {row.split()[0]: row.split()[1:] for row in house.words(parsed).splitlines()[1:]}
    assert rows["given"] == ["2", "0"] and rows["found"] == ["2", "1"] and rows["own"] == ["2", "0"]


def test_private_parts_of_libraries_are_listed_if_imported_read_patched_or_overridden(parsed):
    uses = [use.partition(" ")[2] for use in house.private_uses(parsed, "toy_house")]
    assert sorted(uses) == [
        "imported jax._src.core",
        "overridden _proc_pax",
        "patched tarfile.BLOCKSIZE",
        "read self._block",
        "read tarfile._hidden",
    ]


def test_lines_that_name_a_method_or_a_term_are_listed_outside_the_rooms_of_methods(parsed):
    counts, lines = house.naming_lines(parsed, "toy_house")
    assert counts == {"gram": 1, "siglip": 1} and lines == ["training/step.py:22 gram siglip"]


def test_a_package_without_the_table_of_methods_is_refused(parsed):
    with pytest.raises(ValueError, match="no dictionary METHODS"):
        house.names_of_tables([module for module in parsed if module.room != "methods"])


def test_lines_are_counted_by_room(parsed):
    rows = {row.split()[0]: row.split()[1:] for row in house.rooms(parsed).splitlines()[1:]}
    assert rows["training"] == ["1", "31", "18", "6", "7"] and rows["losses"] == ["1", "3", "3", "0", "0"]


def test_a_command_is_followed_from_main_to_the_step_and_within_it(package):
    command = [sys.executable, house.__file__, str(package), "--follow", "train_step", "main"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert lines == [
        f"{house.REPORT}3 2 2 2",
        "  frame: main.py:6:main",
        "  frame: training/step.py:14:outer",
        "  frame: training/step.py:16:train_step",
        "  within: losses/square.py",
        "  within: training/step.py",
    ]


@pytest.mark.check
def test_this_package_has_the_tables_and_rooms_that_are_measured():
    text = house.measures(house.PACKAGE)
    assert re.search(r"functions and methods +\d{4}", text) and re.search(r"lines outside .*: .*\d", text)


def test_the_import_of_a_command_is_measured(package):
    row = house.imports(package).splitlines()[1].split()
    assert row[0] == "main" and row[2] == "6" and row[4] == "False"  # main, step, square, three folders
