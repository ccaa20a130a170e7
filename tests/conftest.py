"""Eight virtual CPU devices for every test, compiled functions kept between runs, flags that grain wants parsed.

Code generation does not optimise: most of the tests' time goes into compiling, which takes a third less.  XLA's own
rewriting of the program, which could change what is computed, stays as users have it.
"""

import os
import pathlib

import pytest

CACHE = pathlib.Path(__file__).parent.parent / ".pytest_cache" / "jax"

FLAGS = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")


def pytest_configure(config):
    from absl import flags

    flags.FLAGS.mark_as_parsed()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """The tests of a file run in one process, which shares their fixtures, unless they name another group."""
    for item in items:
        if not item.get_closest_marker("xdist_group"):
            item.add_marker(pytest.mark.xdist_group(item.path.stem))


@pytest.fixture(autouse=True, scope="module")
def compiled_functions_are_released():
    """Each holds hundreds of memory maps, and a process may have 65,530: all files in one run would exceed that."""
    yield
    import jax

    jax.clear_caches()
