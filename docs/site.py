"""Hooks of the documentation site: the README is its first page, and links to other files lead to copies of them.

The pages are written for the repository, so that they are complete there too; nothing is written twice.
"""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
COPIES = "source"  # folder of the site for files that lie outside of docs/
LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)#\s]+)")
PAGES = {  # outside of docs/
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "tools/measured.md": "measured.md",
}


def on_config(config: Any) -> Any:
    """Adds pages of docs/ that the menu lacks at its end."""
    named = set(re.findall(r"\w+\.md", str(config.nav)))
    others = sorted(file.name for file in (ROOT / "docs").glob("*.md") if file.name not in named)
    config.nav = [*config.nav, *([{"More": others}] if others else [])]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages of PAGES, and the files that any page links to."""
    for name, page in PAGES.items():
        files.append(File.generated(config, page, content=translated((ROOT / name).read_text(), (ROOT / name).parent)))
    pages = {name: (ROOT / name).read_text() for name in PAGES}
    pages |= {f"docs/{file.src_uri}": file.content_string for file in files.documentation_pages() if file.abs_src_path}
    for name, text in pages.items():
        for link in LINK.findall(text):
            target = located(link, (ROOT / name).parent)
            if target and target not in PAGES and not target.startswith("docs/"):
                copy = File.generated(config, f"{COPIES}/{target}.txt", content=(ROOT / target).read_text())
                if copy.src_uri not in files.src_uris:
                    files.append(copy)
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Rewrites the links of a page of docs/."""
    return markdown if page.file.src_uri in PAGES.values() else translated(markdown, ROOT / "docs")


def located(link: str, folder: Path) -> str:
    """The path below the repository of a link from a page in `folder`; "" if there is no such file."""
    path = (folder / link).resolve()
    return path.relative_to(ROOT).as_posix() if path.is_file() and path.is_relative_to(ROOT) else ""


def translated(markdown: str, folder: Path) -> str:
    """The text of a page in `folder` with its links as seen from docs/."""

    def replaced(match: re.Match[str]) -> str:
        target = located(match[1], folder)
        if not target:
            return match[1]  # mkdocs names it
        if target in PAGES:
            return PAGES[target]
        return target.removeprefix("docs/") if target.startswith("docs/") else f"{COPIES}/{target}.txt"

    return LINK.sub(replaced, markdown)
