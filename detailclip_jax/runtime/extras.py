"""Optional packages, most of which an extra of this package installs: `load` imports one, or says how to get it."""

import importlib
from typing import Any


def missing(needs: str, extra: str = "", package: str = "", otherwise: str = "") -> str:
    """Returns the message for a missing package, which is in an extra of this package or has a name of its own.

    `otherwise` is another way out.

    missing("parquet files need pyarrow", "data") == "parquet files need pyarrow: pip install 'detailclip_jax[data]'"
    """
    way_out = f"pip install {package or repr(f'detailclip_jax[{extra}]')}"
    return f"{needs}: {', or '.join([way_out, otherwise] if otherwise else [way_out])}"


def load(
    module: str,
    needs: str,
    extra: str = "",
    package: str = "",
    otherwise: str = "",
    error: type[Exception] = ModuleNotFoundError,
) -> Any:
    """Imports a module; raises `error` with the message of `missing` if it cannot be imported."""
    try:
        return importlib.import_module(module)
    except ImportError as cause:
        raise error(missing(needs, extra, package, otherwise)) from cause
