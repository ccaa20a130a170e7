"""Eight virtual CPU devices for every test, compiled functions kept between runs, flags that grain wants parsed.

Most of the tests' time goes into compiling. So code generation does not optimise, stays in one piece, and takes XLA's
older emitters of fused loops where they exist: with the newer ones a training step takes 5.6 s, not 2.3 s. XLA's own
rewriting of the program, which could change what is computed, stays as users have it.  Programs do not say which lines
of Python they come from, which makes them smaller, and tiny products are not split over threads.  Tracing makes many
objects and few cycles: Python looks for cycles less often than by default, and not among what the collection of tests
has imported.
"""

import gc
import importlib.metadata
import os
import pathlib

import pytest
from packaging.version import Version

CACHE = pathlib.Path(__file__).parent.parent / ".pytest_cache" / "jax"

FLAGS = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
if Version(importlib.metadata.version("jaxlib")) < Version("0.11.1"):  # later ones end on a flag that they do not know
    FLAGS += " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    FLAGS += " --xla_cpu_multi_thread_eigen=false"

NEW_OBJECTS = 50_000  # between two searches for cycles among the youngest objects; 700 by default

MAPS, MAX_MEMORY_MAPS = pathlib.Path("/proc/self/maps"), 25_000  # leaves the tests of one file 40,000

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")


def pytest_configure(config):
    from absl import flags

    flags.FLAGS.mark_as_parsed()
    gc.set_threshold(NEW_OBJECTS)


def pytest_collection_finish():
    gc.freeze()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    """Files with selected tests of seconds come first, then large ones: no process is left with a long one at the end.

    xdist itself would start with the files of most tests.
    """
    long = {item.path for item in items if item.get_closest_marker("check")}
    size = {item.path: item.path.stat().st_size for item in items}
    items.sort(key=lambda item: (item.path not in long, -size[item.path], item.path))


@pytest.fixture(autouse=True, scope="module")
def compiled_functions_are_released():
    """Each holds hundreds of memory maps, and a process may have 65,530: all files in one run would exceed that."""
    yield
    if num_memory_maps() > MAX_MEMORY_MAPS:
        import jax

        jax.clear_caches()
        gc.collect()


def num_memory_maps():
    """Of this process; more than any limit where the system does not list them."""
    return MAPS.read_bytes().count(b"\n") if MAPS.exists() else MAX_MEMORY_MAPS + 1
