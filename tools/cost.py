"""Measures what only the authors of a change ask: losses, collectives, products, texts, views, dense tasks.

    python tools/cost.py COMMAND --help

A training step, its data and its start are measured by `python -m detailclip_jax.benchmark`.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from costs import collectives, dense, detection, gpu_day, loss, options, products, segmentation, texts, views

from detailclip_jax import benchmark
from detailclip_jax.benchmarks import variants
from detailclip_jax.runtime import errors

PER_DEVICE = 256  # pairs, of gpu-day
TASKS = {"segmentation": segmentation.TASK, "detection": detection.TASK}
OF_A_STEP = {"loss": loss.run, "collectives": collectives.run, "texts": texts.run, "products": products.run}


def measure(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Runs the command and returns its records."""
    if arguments.command == "views":
        return views.run(arguments)
    devices = benchmark.devices_for(arguments.devices)
    if arguments.command in TASKS:
        return dense.run(TASKS[arguments.command], devices, arguments)
    batch = PER_DEVICE * len(devices) if arguments.command == "gpu-day" else benchmark.BATCH
    settings = benchmark.settings(arguments, batch)
    variant = variants.build(arguments.config, settings, arguments.image_size)
    if arguments.command != "gpu-day":
        return OF_A_STEP[arguments.command](variant, devices, arguments)
    if devices[0].platform == "cpu":
        benchmark.check_named(arguments, variant.config.model.size, "")
    return gpu_day.run(variant, settings, devices, arguments)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return errors.run(lambda: benchmark.write(options.parse(argv), measure))


if __name__ == "__main__":
    sys.exit(main())
