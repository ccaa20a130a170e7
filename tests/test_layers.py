"""The house: imports only go down, losses and models never meet, data knows no jax."""

import ast
import pathlib

ROOT = pathlib.Path(__file__).parent.parent / "detailclip_jax"
FLOORS = [
    {"types", "version", "config", "cores", "locks", "patches", "products", "files", "logits"}
    | {"manifest", "terminal", "signals", "start"},
    {"masking", "ema", "centering", "schedules", "resample", "mixing", "losses", "models", "data"},
    {"forward", "parts", "methods"},
    {"mesh", "sharding", "optimizer", "rates", "train_state", "train_step", "accumulation", "encode", "experiment"},
    {"checkpoint", "provenance", "processes", "progress", "run_config", "metrics", "interop", "evaluate", "visualize"}
    | {"inference", "embeddings", "contact_sheet", "saved_shapes", "settings", "config_files", "devices"},
    {"export", "import_torch", "init_from", "train", "main", "interrupt", "session", "validation"}
    | {"compare", "embed", "catalogue", "prepare", "benchmark"}
    | {"doctor", "preflight", "__main__"},
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def imports(path):
    """Modules that a file names in import statements, wherever they stand in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def rooms():
    """(file, its room, a room of ours that it imports)."""
    for path in sorted(ROOT.rglob("*.py")):
        own = path.relative_to(ROOT).with_suffix("").parts[0]
        for name in imports(path):
            parts = name.split(".")
            if parts[0] == "detailclip_jax" and len(parts) > 1 and parts[1] in FLOOR and own != "__init__":
                yield path, own, parts[1]


def test_every_room_has_a_floor():
    present = {path.relative_to(ROOT).with_suffix("").parts[0] for path in ROOT.rglob("*.py")} - {"__init__"}
    assert present <= set(FLOOR), f"give {sorted(present - set(FLOOR))} a floor"


def test_imports_only_go_down():
    up = [f"{path.name} imports {room}" for path, own, room in rooms() if FLOOR[room] > FLOOR[own]]
    assert not up


def test_the_rooms_of_the_first_floor_do_not_know_each_other():
    across = [
        f"{path.name} imports {room}" for path, own, room in rooms() if FLOOR[own] == FLOOR[room] == 1 and own != room
    ]
    assert not across


def test_data_knows_no_jax():
    known = [
        path.name for path in (ROOT / "data").rglob("*.py") for name in imports(path) if name.split(".")[0] == "jax"
    ]
    assert not known
