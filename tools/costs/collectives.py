"""Lists the collective operations (communication between devices) of a compiled step."""

import argparse
from collections.abc import Sequence
from typing import Any

from detailclip_jax.benchmarks import cost_table, counting, hlo
from detailclip_jax.benchmarks.hlo import Collective
from detailclip_jax.benchmarks.step import make_mesh
from detailclip_jax.benchmarks.variants import Variant
from detailclip_jax.runtime.progress import Console
from detailclip_jax.training import experiment as experiments

SHOWN = 12  # maximum number of lines of the longer table


def run(variant: Variant, devices: Sequence[Any], arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Compiles the step, prints its collectives, and returns the records for JSON.

    Raises ValueError for a single device.
    """
    if len(devices) == 1:
        raise ValueError("a single device has no collectives; give several, for example --devices=8")
    console = Console(stream=arguments.progress)
    console.live(f"compiling for {len(devices)} devices (a minute for ViT-B/16 on a CPU)")
    experiment = experiments.build(variant.config, make_mesh(variant, devices))
    compiled = counting.compile(counting.lower(experiment, variant))
    console.end_live()
    several = (c for c in hlo.collectives(compiled.run.as_text()) if c.group > 1)
    found = sorted(several, key=lambda c: -c.moved)
    print(text(found, len(devices), variant))
    return [{"command": "collectives", **record(c), "batch": variant.batch, "devices": len(devices)} for c in found]


def record(collective: Collective) -> dict[str, Any]:
    """A collective as a JSON record."""
    return {**collective._asdict(), "moved": collective.moved}


def text(found: Sequence[Collective], num_devices: int, variant: Variant) -> str:
    """The tables: totals by kind, then the largest collectives one by one."""
    title = f"{variant.config.method} {variant.config.model.size}, batch {variant.batch} on {num_devices} devices"
    kinds = [["kind", "count", "result", "sent per device"]]
    for kind in dict.fromkeys(c.kind for c in found):
        mine = [c for c in found if c.kind == kind]
        result, moved = sum(c.result * c.times for c in mine), sum(c.moved for c in mine)
        kinds.append(
            [kind, str(sum(c.times for c in mine)), cost_table.bytes_text(result), cost_table.bytes_text(moved)]
        )
    lines = ([c.origin or "-", c.kind, c.times, c.group, cost_table.bytes_text(c.result)] for c in found[:SHOWN])
    largest = [["from", "kind", "times", "devices", "result"], *lines]
    rest = [f"... and {len(found) - SHOWN} smaller ones"] if len(found) > SHOWN else []
    return "\n".join([title, "", cost_table.table(kinds), "", cost_table.table(largest), *rest])
