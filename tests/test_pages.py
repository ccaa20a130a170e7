"""The documentation site: it builds strictly, loads nothing from elsewhere, and is searched in a browser."""

import ast
import functools
import http.server
import importlib.util
import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def test_every_extra_is_explained():
    extras = set(re.findall(r'^        "(\w+)": ', (ROOT / "setup.py").read_text(), re.MULTILINE))
    named = set(re.findall(r"^\| `(\w+)` \|", (DOCS / "install.md").read_text(), re.MULTILINE))
    assert len(extras) >= 7 and extras == named


def imported():
    """(page, name) of what the Python of the pages imports from the package, such as detailclip_jax.inference.load."""
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
    titles = [entry["title"] for entry in index]
    for searched in ("Freeze", "tar files", "open_clip or this?", "My loss is ln(batch size)"):  # by newcomers
        assert any(searched in title for title in titles), searched
    api = [entry for entry in index if entry["location"].startswith("api.html")]
    assert api and {entry["boost"] for entry in api} == {0.5}, "other pages are found first"
    assert not [entry["title"] for entry in api if ":" in entry["title"]], "a heading without its types"
    assert not any("return jnp." in entry["text"] for entry in api), "no code"
    assert (site / "search/search_index.js").read_text().startswith("var __index"), "for pages opened as files"


class Quiet(http.server.SimpleHTTPRequestHandler):
    """A server of files that prints nothing."""

    def log_message(self, *arguments):
        pass


@pytest.fixture(params=("file", "server"))
def first_page(request, site):
    """The address of the documentation's first page: as a file, and from a server."""
    if request.param == "file":
        yield (site / "index.html").as_uri()
        return
    handler = functools.partial(Quiet, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://localhost:{server.server_port}/index.html"
        server.shutdown()


@pytest.mark.check
def test_the_documentation_is_searched_without_a_network(first_page, tmp_path):
    pytest.importorskip("selenium")
    from browser import BROWSER, DRIVER, open_browser, texts_of, wait

    if not (BROWSER and DRIVER):
        pytest.skip("the documentation is not tried in a browser: apt-get install chromium chromium-driver")
    browser = open_browser(1400, tmp_path / "profile")
    try:
        browser.get(first_page)
        browser.execute_script("document.querySelector('[data-md-toggle=search]').click()")
        field = browser.find_element("css selector", ".md-search__input")
        wait(browser, lambda _: field.is_displayed())
        field.send_keys("prototypes")
        wait(browser, lambda _: "prototypes" in " ".join(texts_of(browser, ".md-search-result__item")))
        assert not browser.get_log("browser"), "the console is empty"
    finally:
        browser.quit()
