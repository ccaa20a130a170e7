"""Measures the cost of a training step, of its data and of its start.

python -m detailclip_jax.benchmark COMMAND --help
"""

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

from detailclip_jax.benchmarks import benchmark_flags, cost_table, variants
from detailclip_jax.config.settings import parse_setting
from detailclip_jax.runtime import errors

FLAGS = ("method", "size", "dtype", "remat", "scan", "batch", "text_length")
BATCH = 32
CACHE = "jax_enable_compilation_cache"
FORCED = "xla_force_host_platform_device_count"  # jax accepts either this or jax_num_cpu_devices


def settings(arguments: argparse.Namespace, batch: int = BATCH) -> dict[str, Any]:
    """Returns the changes of the config by flags and --set: short name or dotted field -> value."""
    given = {name: value for name in FLAGS if (value := getattr(arguments, name)) is not None}
    return {"batch": batch, **given, **dict(map(parse_setting, arguments.set))}


def check_named(
    arguments: argparse.Namespace, size: str, or_else: str = ", or take --count-only or --compile-only"
) -> None:
    """Raises ValueError if a step would run whose model nobody named: the default is the paper's ViT-B/16."""
    runs = not (arguments.count_only or arguments.compile_only)
    if runs and not (arguments.config or arguments.method or arguments.size or arguments.set):
        raise ValueError(
            f"without a name this would train {size} of configs/vitb16_yfcc.py for some steps; say what to run with "
            f"--config, --method or --size{or_else}"
        )


def devices_for(wanted: int | None) -> Sequence[Any]:
    """Returns `wanted` devices (all by default); if there are too few, the CPU split into that many devices.

    Raises ValueError if the CPU cannot be split, because jax is already running.
    """
    if wanted is not None and FORCED not in os.environ.get("XLA_FLAGS", ""):
        with contextlib.suppress(RuntimeError):  # jax is already running; its devices are fixed
            jax.config.update("jax_num_cpu_devices", wanted)
    if wanted is None or len(jax.devices()) >= wanted:
        return jax.devices()[:wanted]
    if len(cpu := jax.devices("cpu")) < wanted:
        raise ValueError(f"--devices={wanted}, but there are {len(cpu)}")
    return cpu[:wanted]


def measure(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Runs the command and returns its records."""
    if arguments.command == "data":
        from detailclip_jax.benchmarks import data_rate

        return data_rate.run(arguments)
    if arguments.command == "start":
        from detailclip_jax.benchmarks import start_time

        return start_time.run(arguments)
    from detailclip_jax.benchmarks import step

    found = variants.pair(arguments.config, settings(arguments), arguments.against, arguments.image_size)
    devices = devices_for(arguments.devices)
    check_named(arguments, found[0].config.model.size)
    return step.run(found, devices, arguments)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code; errors that a user can correct are printed without a traceback."""
    return errors.run(lambda: write(benchmark_flags.parse(argv), measure))


def write(arguments: argparse.Namespace, measure: Callable[[argparse.Namespace], list[dict[str, Any]]]) -> int:
    """Measures and writes the results.  Raises RunError for an error of the devices, mostly out of memory."""
    arguments.progress = sys.stderr
    try:
        with compiling_anew():
            cost_table.write_json(arguments.json, measure(arguments))
    except RuntimeError as error:
        raise errors.RunError(_explained(error)) from error
    return 0


@contextlib.contextmanager
def compiling_anew() -> Iterator[None]:
    """Context in which jax does not read compiled programs from disk: the time to compile is one of the results."""
    before = getattr(jax.config, CACHE)
    jax.config.update(CACHE, False)
    try:
        yield
    finally:
        jax.config.update(CACHE, before)


def _explained(error: RuntimeError) -> str:
    text = str(error)
    if "RESOURCE_EXHAUSTED" not in text:
        return text
    return f"out of memory: take a smaller --batch, or --remat=full ({text.splitlines()[0]})"


if __name__ == "__main__":
    sys.exit(main())
