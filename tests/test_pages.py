"""The documentation site: it builds strictly, loads nothing from elsewhere; messages on the pages are in the code."""

import ast
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def templates():
    """Every text of the package, with "..." in place of values; blanks and line breaks count as one blank."""
    for file in (ROOT / "detailclip_jax").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = [value.value if isinstance(value, ast.Constant) else "\0" for value in node.values]
                yield " ".join("".join(parts).split())
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield " ".join(re.sub(r"{\w+}", "\0", node.value).split())


def messages():
    """The first cells of the tables of the page, without the examples in brackets after them."""
    text = (DOCS / "troubleshooting.md").read_text()
    return re.findall(r"^\| `([^`]+)`[^|]*\|", text, re.MULTILINE)


def is_in(message, texts):
    pieces = [re.escape(piece.strip()) for piece in message.split("...") if piece.strip()]
    wanted = re.compile(".*".join(pieces))
    return any(wanted.search(text) for text in texts)


def test_every_message_of_the_page_is_one_of_the_code():
    texts = list(templates())
    assert len(messages()) >= 200
    old = [message for message in messages() if not is_in(message, texts)]
    assert not old, "docs/troubleshooting.md quotes messages that the code does not have; quote the new ones"
    assert not is_in("the ... that no function raises", texts)


WAY_OUT = re.compile(
    r"pip install|apt-get install|(?:^|[ '(`,:])--[a-z]|again$|choose another|"
    r"; (?:give|set|write|name|use|remove|delete) "
)
CALLS = {"warn", "warning", "complain", "error", "exit"}
INTERNAL = {  # files whose messages are for those who write methods, heads or layouts
    *("training/optimizer.py", "training/sharding.py", "training/train_state.py", "data/stickers/stickers.py"),
    *("interop/own.py", "models/stacking.py", "segmentation/taps.py"),
}


def template(node):
    """The text of a string in the code, with "\0" in place of values; "" for what is no string."""
    if isinstance(node, ast.JoinedStr):
        return "".join(value.value if isinstance(value, ast.Constant) else "\0" for value in node.values)
    if isinstance(node, ast.BinOp):
        return template(node.left) + template(node.right)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def of_variables(function):
    """The texts that a function raises through a variable: what is assigned to it, and the keys of its tables."""
    nodes = list(ast.walk(function))
    raised = [argument for node in nodes if isinstance(node, ast.Raise) for argument in getattr(node.exc, "args", [])]
    names = {argument.id for argument in raised if isinstance(argument, ast.Name)}
    for node in nodes if names else []:
        if isinstance(node, ast.Dict):
            yield from (template(key) for key in node.keys if key)
        elif isinstance(node, ast.Assign) and {getattr(target, "id", "") for target in node.targets} & names:
            yield template(node.value)


def asked_in(code):
    """What a file raises or prints and that names a command, a flag or another way out."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            texts = map(template, node.exc.args)
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in CALLS:
            texts = map(template, node.args)
        elif isinstance(node, ast.FunctionDef):
            texts = of_variables(node)
        else:
            continue
        found = (" ".join(text.split()) for text in texts)
        yield from (text for text in found if WAY_OUT.search(text))


def asked():
    """(file, message) of `asked_in` for all files of the package."""
    package = ROOT / "detailclip_jax"
    for file in sorted(package.rglob("*.py")):
        yield from ((file.relative_to(package).as_posix(), text) for text in asked_in(file.read_text()))


def test_messages_are_found_where_they_are_raised_directly_and_through_a_variable():
    code = """
def check(count):
    wrong = {f"--count={count} must be 1": count > 1, "--other: give one": not count}
    for message, so in wrong.items():
        if so:
            raise ValueError(message)
    line = f"write it again{count}; use --out"
    raise ValueError("first; give --more") if count else OSError(line)

def other():
    return {"--not raised": 1}
"""
    found = sorted(asked_in(code.replace(" if count else OSError(line)", "\n    raise OSError(line)")))
    assert found == ["--count=\0 must be 1", "--other: give one", "first; give --more", "write it again\0; use --out"]


def test_every_message_with_a_way_out_is_on_the_page():
    """As a row that has a part of it: a row may stand for a family, and the wording is free."""
    rows = messages()
    pairs = [pair for pair in asked() if pair[0] not in INTERNAL]
    assert len(pairs) >= 150
    missing = [(file, text.replace("\0", "...")) for file, text in pairs if not any(is_in(row, [text]) for row in rows)]
    assert not missing, "docs/troubleshooting.md lacks these messages"


def test_every_extra_is_explained():
    extras = set(re.findall(r'^        "(\w+)": ', (ROOT / "setup.py").read_text(), re.MULTILINE))
    named = set(re.findall(r"^\| `(\w+)` \|", (DOCS / "install.md").read_text(), re.MULTILINE))
    assert len(extras) >= 7 and extras == named


def imported():
    """(page, name) of what the Python of the pages imports from the package, such as detailclip_jax.run.transfer."""
    for page in (ROOT / "README.md", *DOCS.glob("*.md")):
        for block in re.findall(r"^```py(?:thon)?\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE):
            for node in ast.walk(ast.parse(block)):
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("detailclip_jax"):
                    yield from ((page.name, f"{node.module}.{alias.name}") for alias in node.names)


def test_what_the_pages_import_is_on_the_page_of_the_api():
    entries = re.findall(r"^::: (\S+)$", (DOCS / "api.md").read_text(), re.MULTILINE)
    is_there = lambda name: any(f"{name}.".startswith(f"{e}.") or e.startswith(f"{name}.") for e in entries)
    names = list(imported())
    assert len(names) >= 15 and not is_there("detailclip_jax.runtime.files")
    assert not [(page, name) for page, name in names if not is_there(name)]


def build_site(folder):
    """Builds the site strictly: a link or a heading that is not there is an error."""
    for name in ("material", "mkdocstrings"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"needs {name}: pip install -e '.[docs]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", f"--site-dir={folder}"]
    options = {"env": {**os.environ, "NO_MKDOCS_2_WARNING": "1"}, "capture_output": True, "text": True}
    done = subprocess.run(command, cwd=ROOT, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    return build_site(tmp_path_factory.mktemp("site"))


@pytest.mark.check
def test_the_site_loads_nothing_from_elsewhere(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) >= len(list(DOCS.glob("*.md")))
    for page in pages:
        loaded = re.findall(
            r"<(?:script|link|img|iframe)[^>]*(?:src|href)=\"?((?:https?:)?//[^\"\s>]+)", page.read_text()
        )
        assert not loaded, page


@pytest.mark.check
def test_pages_docstrings_and_search_are_there(site):
    assert "L2-normalised embeddings of any number of images" in (site / "api.html").read_text()
    first = (site / "index.html").read_text()
    assert "Two commands" in first
    assert [file.stem for file in DOCS.glob("*.md") if f'href="{file.stem}.html"' not in first] == [], "not in the menu"
    assert "def clip_loss" in (site / "source/detailclip_jax/losses/clip.py.txt").read_text()
    index = json.loads((site / "search/search_index.json").read_text())["docs"]
    assert any("prototypes" in entry["text"] for entry in index)
    api = [entry for entry in index if entry["location"].startswith("api.html")]
    assert api and {entry["boost"] for entry in api} == {0.5}, "other pages are found first"
    assert not [entry["title"] for entry in api if ":" in entry["title"]], "a heading without its types"
    assert not any("return jnp." in entry["text"] for entry in api), "no code"
    assert (site / "search/search_index.js").read_text().startswith("var __index"), "for pages opened as files"
