"""The rooms of the package: imports go one way, no circle within a room, data knows no jax."""

import ast
import graphlib
import pathlib

from detailclip_jax import methods

ROOT = pathlib.Path(__file__).parent.parent / "detailclip_jax"
PACKAGE = ROOT.name
BASE = ("version", "types", "renamed")  # files at the top that are no commands
ROOMS = (  # in the order of the data; a room imports only rooms that stand before it
    *("runtime", "config", "data", "convert", "kernels", "losses", "models", "methods", "training"),
    *("inference", "interop", "figures", "dense", "evaluation", "page", "pretraining", "benchmarks"),
)
COMMANDS = (
    *(
        "__main__",
        "main",
        "transfer",
        "evaluate",
        "prepare",
        "embed",
        "export",
        "import_torch",
        "compare",
        "look",
        "visualize",
        "demo",
        "benchmark",
        "doctor",
    ),
)
ORDER = {name: number for number, name in enumerate((*BASE, *ROOMS))}


def modules():
    """Dotted name without the package -> file; a package's own name stands for its `__init__`."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imported(path):
    """Names in the import statements of a file, wherever they stand in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative imports hide where a name comes from"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_imports(path):
    """The modules of this package that a file imports."""
    for name in imported(path):
        inner = name.removeprefix(f"{PACKAGE}.")
        if name.startswith(f"{PACKAGE}."):
            yield inner if inner in MODULES else inner.rpartition(".")[0]


IMPORTS = {name: set(own_imports(path)) - {name, ""} for name, path in MODULES.items() if name}


def room(name):
    return name.split(".")[0]


def test_every_file_at_the_top_is_a_command_and_every_folder_a_room():
    assert {room(name) for name in IMPORTS} == {*BASE, *ROOMS, *COMMANDS}


def test_a_room_imports_only_rooms_before_it():
    against = [
        f"{name} imports {other}"
        for name, others in IMPORTS.items()
        for other in others
        if room(name) in ORDER and room(other) != room(name) and ORDER.get(room(other), len(ORDER)) >= ORDER[room(name)]
    ]
    assert not against


def test_no_module_imports_itself_in_a_circle():
    tuple(graphlib.TopologicalSorter(IMPORTS).static_order())  # raises CycleError with the circle


def test_losses_and_models_do_not_know_each_other():
    across = [
        f"{name} imports {other}"
        for name, others in IMPORTS.items()
        for other in others
        if {room(name), room(other)} == {"losses", "models"}
    ]
    assert not across


def test_nothing_but_its_command_imports_convert():
    readers = [name for name, others in IMPORTS.items() if any(room(other) == "convert" for other in others)]
    assert {room(name) for name in readers} <= {"convert", "prepare"}


def test_data_knows_no_jax():
    known = [path.name for path in (ROOT / "data").rglob("*.py") if "jax" in {n.split(".")[0] for n in imported(path)}]
    assert not known


OTHER_MEANINGS = {  # names of terms that are also words for something else
    "negatives": "false captions: a field of the data, and of the evaluated choices",
    "rank": "a place in an order",
    "region_text": "an array of the batch, see `data.regions`",
}
TERMS = {*methods.TERMS} - {*OTHER_MEANINGS}
OWNERS = ("methods", "losses", "config", "interop")  # interop: tensors of published code have such names


def test_no_module_outside_methods_names_a_term_or_compares_a_methods_name():
    """A method declares what it needs, so that a new one changes nothing but its own files."""
    found = []
    for path in sorted(ROOT.rglob("*.py")):
        if path.relative_to(ROOT).parts[0] in OWNERS:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            term = isinstance(node, ast.Constant) and node.value in TERMS
            term |= isinstance(node, ast.Attribute) and node.attr in TERMS and ast.unparse(node) != "jax.random.beta"
            compared = isinstance(node, ast.Compare) and any(
                isinstance(side, ast.Attribute) and ast.unparse(side) in ("config.method", "method.name")
                for side in (node.left, *node.comparators)
            )
            compared &= isinstance(node, ast.Compare) and any(isinstance(x, ast.Constant) for x in ast.walk(node))
            if term or compared:
                found.append(f"{path.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node)}")
    assert found == [], "rename the term; or, if the name means something else there, list it in OTHER_MEANINGS"
