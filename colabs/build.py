"""Writes the notebooks of this folder from their sources, and runs them.

    python colabs/build.py                       # NAME.ipynb from every NAME.py; outputs of unchanged cells stay
    python colabs/build.py --run 01_quickstart   # this one alone, run, with its outputs and small images

The stored outputs are of trained models, which the environment variable `MODEL` names; the text of a notebook has its
value: `MODEL=clip python colabs/build.py --run 05_your_data`.

A source is Python with cells in the percent format (jupytext): it is linted, and its changes are easy to see. A
notebook is what Colab opens; a test compares both. REPOSITORY in the sources stands for the constant below.
"""

import argparse
import base64
import io
import re
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from PIL import Image

REPOSITORY = "OWNER/detailclip_jax"  # on GitHub; OWNER is replaced by the account when the repository is published
FOLDER = Path(__file__).parent
SOURCES = sorted(FOLDER.glob("[0-9]*.py"))
COLOURS, WIDTH = 64, 720  # of the images in the outputs
KERNEL = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}


def notebook_of(source: Path) -> nbformat.NotebookNode:
    """The notebook of a source, without outputs; its cells have numbers as ids."""
    made = jupytext.reads(source.read_text(encoding="utf-8").replace("REPOSITORY", REPOSITORY), fmt="py:percent")
    made.metadata = nbformat.from_dict({**KERNEL, "language_info": {"name": "python"}})
    for number, cell in enumerate(made.cells):
        cell["id"], cell["metadata"] = f"cell-{number}", nbformat.from_dict({})
    made.nbformat, made.nbformat_minor = 4, 5
    return made


def with_old_outputs(made: nbformat.NotebookNode, file: Path) -> nbformat.NotebookNode:
    """The notebook with the outputs that the file has for cells of the same source, whatever the repository's name."""
    old = nbformat.read(file, as_version=4).cells if file.exists() else []
    outputs = {without_repository(cell.source): cell.outputs for cell in old if cell.cell_type == "code"}
    for cell in made.cells:
        if cell.cell_type == "code":
            cell.outputs = outputs.get(without_repository(cell.source), [])
    return made


def without_repository(text: str) -> str:
    """The text without the names of repositories in its addresses on GitHub."""
    return re.sub(r"github\.com/[\w.-]+/[\w.-]+", "github.com", text)


def run(made: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook, executed in this folder; raises CellExecutionError with the traceback of a failing cell."""
    client = NotebookClient(made, timeout=900, iopub_timeout=120, resources={"metadata": {"path": str(FOLDER)}})
    return client.execute()  # with a shorter iopub_timeout a busy machine would lose outputs


def kept_small(made: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Without counts, times and warnings; images are reduced (see `smaller`)."""
    for cell in (cell for cell in made.cells if cell.cell_type == "code"):
        cell.execution_count, cell.metadata = None, nbformat.from_dict({})
        cell.outputs = joined([output for output in cell.outputs if output.get("name") != "stderr"])
        for output in cell.outputs:
            if "execution_count" in output:
                output.execution_count = None
            if "image/png" in output.get("data", {}):
                output.data = nbformat.from_dict({"image/png": smaller(output.data["image/png"])})
    return made


def joined(outputs: list[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    """The outputs, with printed texts that follow each other as one, and paths relative to this folder."""
    made: list[nbformat.NotebookNode] = []
    for output in outputs:
        if "text" in output:
            output.text = output.text.replace(f"{FOLDER.resolve()}/", "")
        if made and output.get("name") == made[-1].get("name") == "stdout":
            made[-1].text += output.text
        else:
            made.append(output)
    return made


def smaller(png: str) -> str:
    """A PNG in base64 with at most WIDTH pixels across and COLOURS colours."""
    image = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    image.thumbnail((WIDTH, 10 * WIDTH), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.quantize(COLOURS).save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def main() -> None:
    """Writes all notebooks, or runs the named ones and writes them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", nargs="+", default=[], metavar="NAME", help="notebooks to run, such as 01_quickstart")
    names = parser.parse_args().run
    for source in (source for source in SOURCES if not names or source.stem in names):
        file = source.with_suffix(".ipynb")
        made = notebook_of(source)
        made = kept_small(run(made)) if source.stem in names else with_old_outputs(made, file)
        nbformat.write(made, file)
        print(file)


if __name__ == "__main__":
    main()
