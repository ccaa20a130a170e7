"""A step compiled for devices that are not here: memory, products, collectives, copies, and a bound of its time.

The compiler of the devices runs in a process of its own, which `plan` starts with the environment that it needs:

    python -m detailclip_jax.benchmarks.planned v5e:4x4 "{'spec': None, 'settings': {'batch': 1024}}"

prints the record as JSON.  FLOP are counted by XLA on the step without loops, at COUNTED pairs, with and without
what is recomputed.  All else is read from the compiled program, whose loops count once per iteration.  The roofline is
a bound, not a measurement; `with_bound` has its assumptions.
"""

import ast
import json
import math
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from detailclip_jax.benchmarks import cost_table, targets
from detailclip_jax.benchmarks.targets import Target
from detailclip_jax.runtime.errors import RunError
from detailclip_jax.runtime.progress import Console

COUNTED = 32  # pairs at which FLOP are counted, as on docs/performance.md
WHOLE = {"views.patch_dropout": 0.0, "views.patch_dropout_until": 1.0}  # the settings of the end of a run
LESS_MEMORY = "set --remat=full, mesh.fsdp or a smaller model"  # if the smallest batch does not fit
STEP = 8  # pairs of a device, in a chunk of accumulation, by which the largest batch is rounded down
Record = dict[str, Any]


def plan(target: Target, request: Mapping[str, Any], console: Console) -> Record:
    """Compiles a step for a target in another process and returns its record.

    `request` has the arguments of `variants.build`.  Raises ValueError if the compiler is not installed, and RunError
    with its message if it fails for another reason than the devices' memory.
    """
    targets.check_installed(target)
    console.live(f"{request.get('name', '')}: compiling for {target.name} (minutes)")
    command = [sys.executable, "-m", __name__, target.name, repr(dict(request))]
    done = subprocess.run(command, env=targets.environment(target), capture_output=True, text=True, check=False)
    console.end_live()
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise RunError(f"the step does not compile for {target.name}: {lines[-1] if lines else done.returncode}")
    record: Record = json.loads(done.stdout.splitlines()[-1])
    return record


def plan_of_run(target: Target, request: Mapping[str, Any], console: Console) -> list[Record]:
    """Returns the records of all steps of a run.

    With `views.native_budget` there is one for each number of patches, and with `views.patch_dropout_until` one for the
    end of the run, which sees all patches and needs the most memory.
    """
    first = plan(target, request, console)
    others = {f"{num} patches": {"num_patches": num} for num in first["native"] if num != first["num_patches"]}
    if first["ends_whole"]:
        others["all patches"] = WHOLE
    return [first, *(plan(target, _changed(request, *other), console) for other in others.items())]


def _changed(request: Mapping[str, Any], name: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    settings = {**request["settings"], **fields}
    return {**request, "name": f"{request['name']}, {name}", "settings": settings}


def largest(target: Target, request: Mapping[str, Any], first: Record, console: Console) -> Record:
    """Returns the record of the largest batch that fits, by a line through the memory of two batches.

    `first` is the record of the request; if the compiler refuses it, the two batches are the smallest.  The estimate is
    confirmed by compiling it, and a smaller one once if it does not fit; `fits` says whether the last does, and `note`
    what to do if not.  Raises RunError if no batch fits by the line, and if memory does not grow along it.
    """
    unit = target.count * first["accumulation"]  # every batch is a multiple of it
    size, limit = first["batch"] // unit, math.inf
    smallest = f"{unit} is the smallest batch: {LESS_MEMORY}"

    def of(units: int) -> Record:
        settings = {**request["settings"], "batch": units * unit}
        return plan(target, {**request, "settings": settings}, console)

    if "refused" in first:
        size, limit = 1, size
        first = of(1) if limit > 1 else first
        if "refused" in first:
            return {**first, "note": smallest}
    other = max(size // 2, 1) if size > 1 else 2
    if other >= limit:  # refused already
        return first
    second = of(other)
    if "refused" in second:  # twice the smallest batch
        return first
    slope = (first["total_bytes"] - second["total_bytes"]) / (size - other)
    smaller, larger = sorted((size * unit, other * unit))
    if slope <= 0:
        raise RunError(
            f"{first['name']}: batch {larger} needs no more memory than batch {smaller}, so that the "
            "largest batch is not known; set a larger --batch"
        )
    most = int(min(size + (first["memory_bytes"] - first["total_bytes"]) // slope, limit - 1))
    if most < 1:
        rest = (first["total_bytes"] - size * slope) / 2**30
        raise RunError(
            f"{first['name']}: does not fit with any batch: by batches {smaller} and {larger} it needs {rest:.2f} GiB "
            f"and {slope / 2**30:.2f} GiB for each {unit} pairs, {available(first)}; {LESS_MEMORY}"
        )
    found = of(_rounded(most))
    if not found["fits"] and most > 1:
        nearest = min(first, second, key=lambda record: abs(record["batch"] - found["batch"]))
        found = of(_rounded(_smaller(found, nearest, unit)))
    if found["fits"]:
        return found
    advice = "the largest batch is not known; set a smaller --batch"
    return {**found, "note": advice if found["batch"] > unit else smallest}


def _smaller(large: Record, small: Record, unit: int) -> int:
    """The units that fit by the line from a batch that does not to a smaller one; an eighth less without its memory."""
    units = large["batch"] // unit
    fewer = units * 7 // 8
    if "refused" not in large:
        slope = (large["total_bytes"] - small["total_bytes"]) / (units - small["batch"] // unit)
        if slope > 0:
            fewer = units + int((large["memory_bytes"] - large["total_bytes"]) // slope)
    return max(fewer, 1)


def _rounded(units: int) -> int:
    return units - units % STEP if units > 2 * STEP else units


def compiled(target: Target, request: Mapping[str, Any]) -> Record:
    """Compiles a step for a target; in a process with the target's environment."""
    import jax

    from detailclip_jax.benchmarks import counting, variants
    from detailclip_jax.training import experiment as experiments
    from detailclip_jax.training import mesh as meshes

    variant = variants.build(**request)
    counted = {**request["settings"], "batch": COUNTED, "views.native_budget": 0}
    few = variants.build(**{**request, "settings": counted})
    mesh = meshes.make_mesh(target.devices(), fsdp=variant.config.mesh.fsdp)
    experiment = experiments.build(variant.config, mesh)
    model, needed = experiment.config.model, counting.count_flops(few)
    record: Record = {
        "name": variant.name,
        "target": target.name,
        "device": target.chip.device_kind,
        "devices": target.count,
        "method": variant.config.method,
        "size": model.size,
        "dtype": model.dtype,
        "remat": model.remat,
        "scan": model.scan,
        "fsdp": variant.config.mesh.fsdp,
        "accumulation": variant.config.accumulation,
        "attention": experiment.forward_pass.model.table["image"].kernel,
        "batch": variant.batch,
        "text_length": variant.words,
        "num_patches": variant.num_patches,
        "native": tuple(variant.config.views.native) if variant.config.views.native_budget else (),
        "ends_whole": bool(variant.config.views.patch_dropout and variant.config.views.patch_dropout_until < 1),
        "memory_bytes": target.accelerator.memory,
        "flops_per_pair": needed,
        "executed_flops_per_pair": max(needed, counting.count_flops(few, model.remat)),
        "jax": jax.__version__,
    }
    lowered = counting.lower(experiment, variant)
    try:
        program = counting.compile(lowered)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return {**record, "fits": False, "refused": str(error).splitlines()[0]}
    memory = program.memory
    record |= {
        "argument_bytes": memory.arguments,
        "temp_bytes": memory.temporaries,
        "total_bytes": memory.total,
        "fits": memory.total <= target.accelerator.memory,
        "compile_cpu_seconds": program.cpu_seconds,
    }
    return with_bound(record | of_program(program.run.as_text(), target), target)


def of_program(text: str, target: Target) -> Record:
    """What the text of a compiled program says."""
    from detailclip_jax.benchmarks import hlo

    products = hlo.products(text)
    collectives = [each for each in hlo.collectives(text, target.per_host) if each.group > 1]
    kinds: dict[str, Record] = {}
    for each in collectives:
        kind = kinds.setdefault(each.kind, {"count": 0, "overlapping": 0, "bytes": 0, "sent_bytes": 0.0})
        kind["count"] += each.times
        kind["overlapping"] += each.times * each.overlaps
        kind["bytes"] += each.times * each.result
        kind["sent_bytes"] += each.moved
    single = [each for each in products if each.result == "f32"]
    return {
        "traffic_bytes": hlo.traffic(text),
        "products": sum(each.times for each in products),
        "float32_products": sum(each.times for each in single),
        "float32_product_bytes": sum(each.times * each.size for each in single),
        "float32_factors": sum(each.times for each in products if each.factors == "f32"),
        "moves": {name: moved._asdict() for name, moved in hlo.copies(text).items()},
        "collectives": kinds,
        "sent_within": sum(each.moved - each.between_hosts for each in collectives),
        "sent_between": sum(each.between_hosts for each in collectives),
    }


def with_bound(record: Record, target: Target) -> Record:
    """Returns the record with the least seconds of the compiled step, by each resource, and the rate that they allow.

    This is a lower bound if all that the program reads and writes passes through the device's memory, and if the
    switches neither add nor copy data: a cache may save traffic, and NVLink's switches can halve an all-reduce.
    Products, memory, the links of a host or slice and the network may all work at the same time; collectives send as
    little as possible to other hosts.  "links" and the rate are None if bytes pass a network of unknown bandwidth.
    """
    chip = target.accelerator
    seconds = {
        "products": record["executed_flops_per_pair"] * record["batch"] / target.count / chip.peak(record["dtype"]),
        "memory": record["traffic_bytes"] / chip.bandwidth,
        "links": record["sent_within"] / chip.link,
    }
    if record["sent_between"] and not chip.network:
        return {**record, "roofline_seconds": seconds | {"links": None}, "roofline_pairs_per_second": None}
    if record["sent_between"]:
        seconds["links"] = max(seconds["links"], record["sent_between"] / chip.network)
    bound = max(seconds.values())
    return {**record, "roofline_seconds": seconds, "roofline_pairs_per_second": record["batch"] / bound}


def run(target_name: str, requests: Sequence[Mapping[str, Any]], most: bool, console: Console) -> list[Record]:
    """Compiles the requests, prints their table, and returns the records; `most` finds the largest batch as well.

    That is the largest batch of all steps of the run.
    """
    target = targets.find(target_name)
    records = []
    for request in requests:
        steps = plan_of_run(target, request, console)
        records += steps
        if most:
            asked = _changed(request, "largest batch", WHOLE if steps[0]["ends_whole"] else {})
            records.append({**largest(target, asked, steps[-1], console), "name": asked["name"]})
    print(text(target, records))
    return [{"command": "step", **record} for record in records]


def text(target: Target, records: Sequence[Record]) -> str:
    """The table as text: a column for each record."""
    rows = [[name, *(_cell(form, record) for record in records)] for name, form in ROWS.items()]
    title = f"{target.count} x {target.chip.device_kind} ({target.name}): compiled, not run"
    verdicts = [verdict(record) for record in records]
    return "\n\n".join([title, cost_table.table([["", *(r["name"] for r in records)], *rows]), *verdicts])


def verdict(record: Record) -> str:
    """Says whether the step fits the devices."""
    note = f"; {record['note']}" if "note" in record else ""
    if "refused" in record:
        refused = f"does not fit, the compiler refuses it; {available(record)} ({record['refused']})"
        return f"{record['name']}: {refused}{note}"
    word = "fits" if record["fits"] else "does not fit"
    return f"{record['name']}: {word}; it needs {record['total_bytes'] / 2**30:.2f} GiB, {available(record)}{note}"


def available(record: Record) -> str:
    """Says how much memory a device has."""
    return f"a device has {record['memory_bytes'] / 2**30:.2f} GiB for jax"


def _cell(form: Any, record: Record) -> str:
    try:
        return str(form(record))
    except KeyError:
        if "refused" not in record:
            raise
        return "-"


def _collective(kind: str) -> Any:
    def form(record: Record) -> str:
        sums = record["collectives"].get(kind)
        if not sums:
            return "none"
        return f"{sums['count']}, {cost_table.bytes_text(sums['bytes'])}, {sums['overlapping']} overlap"

    return form


def _milliseconds(name: str) -> Any:
    def form(record: Record) -> str:
        seconds = record["roofline_seconds"][name]
        return "-" if seconds is None else f"{1000 * seconds:.4g} ms"

    return form


ROWS = {
    "what": lambda r: f"{r['method']} {r['size']} {r['dtype']} remat={r['remat']}",
    "batch, pairs a device": lambda r: f"{r['batch']}, {r['batch'] // r['devices']}",
    "patches of a native image": lambda r: str(r.get("num_patches") or "-"),
    "attention": lambda r: r["attention"],
    "GFLOP/pair, counted": lambda r: cost_table.number(r["flops_per_pair"], 1e9),
    "with recomputation": lambda r: cost_table.number(r["executed_flops_per_pair"], 1e9),
    "arguments per device": lambda r: cost_table.bytes_text(r["argument_bytes"]),
    "temporaries per device": lambda r: cost_table.bytes_text(r["temp_bytes"]),
    "memory traffic per pair": lambda r: cost_table.bytes_text(r["traffic_bytes"] * r["devices"] / r["batch"]),
    "products, with float32 result": lambda r: (
        f"{r['products']}, {r['float32_products']} ({cost_table.bytes_text(r['float32_product_bytes'])})"
    ),
    "products of float32 factors": lambda r: r["float32_factors"],
    "copies": lambda r: f"{r['moves']['copy']['count']}, {cost_table.bytes_text(r['moves']['copy']['size'])}",
    "transposes": lambda r: (
        f"{r['moves']['transpose']['count']}, {cost_table.bytes_text(r['moves']['transpose']['size'])}"
    ),
    "all-reduces": _collective("all-reduce"),
    "all-gathers": _collective("all-gather"),
    "reduce-scatters": _collective("reduce-scatter"),
    "sent within a host or slice": lambda r: cost_table.bytes_text(r["sent_within"]),
    "sent between hosts": lambda r: cost_table.bytes_text(r["sent_between"]),
    "bound by products": _milliseconds("products"),
    "bound by memory": _milliseconds("memory"),
    "bound by links": _milliseconds("links"),
    "roofline pairs/s, all devices": lambda r: (
        "-" if r["roofline_pairs_per_second"] is None else cost_table.number(r["roofline_pairs_per_second"])
    ),
    "compile CPU seconds": lambda r: f"{r['compile_cpu_seconds']:.0f}",
}


if __name__ == "__main__":
    print(json.dumps(compiled(targets.find(sys.argv[1]), ast.literal_eval(sys.argv[2]))))
