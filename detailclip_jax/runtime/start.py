"""Start-up check of every command, before the command's own module is imported.

`detailclip_jax/__init__.py` makes it for `python -m detailclip_jax.NAME`, `__main__.py` for the console script.

Imports only the standard library.
"""

import sys
from importlib.util import find_spec
from types import TracebackType

NEEDED = ("jax", "grain", "absl")
OUTSIDE = """error: {python} does not have {missing}, which detailclip_jax needs. In a checkout, make the environment
with make demo and take its Python: . .venv/bin/activate (or .venv/bin/python -m ...). Without make: pip install -e .
Without a checkout: pip install detailclip_jax"""
USAGE_ERROR = 2


def check() -> None:
    """Exits with a message if a required package is missing; from here on Ctrl-C prints one line, no traceback."""
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        print(OUTSIDE.format(python=sys.executable, missing=", ".join(missing)), file=sys.stderr)
        sys.exit(USAGE_ERROR)
    sys.excepthook = _show


def _show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        print("\ninterrupted", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)
