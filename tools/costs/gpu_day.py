"""Measures a training step on a GPU or TPU: numerics, speed, memory, other settings, determinism and data.

Sections run one after another, the most important first.  A section that fails is reported and the others go on; one
that would begin after the time limit is left out.  The results are written after every section.
"""

import argparse
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from costs import products
from detailclip_jax import config as configs
from detailclip_jax import interop, methods
from detailclip_jax.benchmarks import cost_table, counting, data_rate, step, timing, variants
from detailclip_jax.benchmarks.step import Stepper
from detailclip_jax.benchmarks.variants import Variant
from detailclip_jax.config import sizes
from detailclip_jax.runtime.devices import memory_of, usable_cores
from detailclip_jax.runtime.errors import first_line
from detailclip_jax.runtime.files import replace_text
from detailclip_jax.runtime.progress import Console
from detailclip_jax.training import experiment as experiments
from detailclip_jax.training import mesh as meshes
from detailclip_jax.training.experiment import Experiment
from detailclip_jax.training.train_state import TrainState

GOLDEN = Path(__file__).parents[2] / "tests/golden/tiny_detailclip.npz"  # in a checkout
GOLDEN_SIZE = sizes.Size(16, 96, 3, 4, 64, 2, 4, 48, 1, 4, 128, 32, 256)  # tests/golden/README.md
GOLDEN_TERMS = {"loss": "loss", "cls": "ibot_cls_loss", "patch": "ibot_patch_loss", "reconstruction": "reconst_loss"}
SMALL = {"depth": 2, "text_depth": 1}  # of the comparison with the CPU
COMPARED = {  # settings against those of the command line, each with one difference
    "attention": {"model.attention": "xla"},
    "chunks of 3 x 2^20": {"losses.chunk_logits": 3 * 2**20},
    "chunks of 2^25": {"losses.chunk_logits": 2**25},
    "all logits at once": {"losses.chunk_logits": 0},
    "remat": {"remat": "full"},
}
DETERMINISTIC = {"xla_gpu_deterministic_ops": True}
Values = dict[str, Any]


class Target:
    """What the sections measure: a variant, its devices, and its step, compiled when a section first needs it."""

    def __init__(self, variant: Variant, settings: Mapping[str, Any], devices: Sequence[Any], given: Any):
        """Stores what the sections need; `settings` made the variant."""
        self.variant, self.settings, self.devices, self.arguments = variant, settings, devices, given
        self.console = Console(stream=given.progress)

    @functools.cached_property
    def mesh(self) -> Any:
        """The mesh of the variant."""
        return step.make_mesh(self.variant, self.devices)

    @functools.cached_property
    def result(self) -> step.Result:
        """The counted and compiled step."""
        return step.analyse(self.variant, self.devices, self.arguments, self.console)

    @functools.cached_property
    def stepper(self) -> Stepper:
        """The running step, after its first call."""
        return Stepper(self.result)

    def changed(self, settings: Mapping[str, Any]) -> Variant:
        """The variant with other settings."""
        return variants.build(self.arguments.config, {**self.settings, **settings}, self.arguments.image_size)

    def compare(self, other: Stepper) -> timing.MedianRange:
        """How many times as fast the other step is, in alternation with the variant's own."""
        steps = timing.steps_for(timing.interleaved([self.stepper], 1)[0][0])
        calls = [functools.partial(stepper, steps) for stepper in (self.stepper, other)]
        return timing.ratios(*timing.interleaved(calls, self.arguments.rounds))


class Section(NamedTuple):
    """One check: its name, what it shows, and the function that measures it."""

    name: str
    shows: str
    measure: Callable[[Target], Values]


def run(
    variant: Variant, settings: Mapping[str, Any], devices: Sequence[Any], arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    """Runs all sections, writes `results.json` and `page.md` into --out, prints the page, and returns the records."""
    target, records, out = Target(variant, settings, devices, arguments), [], Path(arguments.out)
    began = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    for section in SECTIONS:
        used = time.monotonic() - began
        target.console.live(f"{section.name} | {used / 60:.1f} of {arguments.minutes:g} minutes")
        late = used > 60 * arguments.minutes
        records.append(measured(section, target) if not late else record(section, "left out", {"reason": "time limit"}))
        cost_table.write_json(str(out / "results.json"), records)
        replace_text(out / "page.md", page(variant, devices, records))
    target.console.end_live()
    print(page(variant, devices, records))
    return records


def measured(section: Section, target: Target) -> dict[str, Any]:
    """The record of a section; an error is part of it."""
    began = time.monotonic()
    try:
        status, values = "ok", section.measure(target)
    except Exception as error:  # out of memory, or a kernel that this device lacks: the other sections still count
        status, values = "failed", {"reason": first_line(error)}
    return record(section, status, values) | {"took_seconds": time.monotonic() - began}


def record(section: Section, status: str, values: Values) -> dict[str, Any]:
    """A section's result as a JSON record."""
    return {"command": "gpu-day", "section": section.name, "status": status, **values}


def page(variant: Variant, devices: Sequence[Any], records: Sequence[Mapping[str, Any]]) -> str:
    """All results as a page of Markdown."""
    model, shows = variant.config.model, {section.name: section.shows for section in SECTIONS}
    settings = f"{model.dtype}, remat={model.remat}, {variant.words} text tokens"
    lines = [
        f"# {variant.config.method} {model.size} on {len(devices)} x {devices[0].device_kind}",
        "",
        f"Batch {variant.batch}, {settings}; jax {jax.__version__}",
    ]
    for found in records:
        lines += ["", f"## {found['section']}: {found['status']}", "", shows[found["section"]], ""]
        values = {k: v for k, v in found.items() if k not in ("command", "section", "status")}
        lines += [f"- {name.replace('_', ' ')}: {_shown(value)}" for name, value in values.items()]
    return "\n".join([*lines, ""])


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_shown(one)}" for name, one in value.items())
    if isinstance(value, tuple | list):
        middle, *ends = map(_shown, value)
        return f"{middle} ({'-'.join(ends)})"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def machine(target: Target) -> Values:
    """Devices, their memory and the host."""
    peak, memory = step.peak_flops(target.devices[0].device_kind, "bfloat16"), memory_of(target.devices[0])
    return {
        "device": target.devices[0].device_kind,
        "devices": len(target.devices),
        "usable_gigabytes": memory / 1e9 if memory else "unknown",
        "teraflops_in_bfloat16": "unknown" if peak is None else peak / 1e12,
        "attention": methods.build_networks(target.variant.config).table["image"].kernel,
        "host_cores": usable_cores(),
    }


def golden(target: Target) -> Values:
    """Relative differences of the loss terms from those of the authors' code, float32, tests/golden/README.md."""
    with np.load(GOLDEN) as file:
        known = dict(file)
    experiment = experiments.build(golden_config(), meshes.make_mesh(target.devices[:1]))
    _, variables, _ = interop.load({k[3:]: v for k, v in known.items() if k.startswith("sd/")}, "reference")
    centers = {"cls": known["in/center"][0], "patch": known["in/center2"][0, 0]}
    state = state_of(experiment, step=np.int32(known["in/epoch"]), **variables, running=centers)
    views = np.stack([np.moveaxis(known[f"in/{name}_u8"], 1, -1) for name in ("u", "v")], 1)
    batch = {
        "image": {"large": views},
        "box": {"large": np.zeros((4, 2, 4), np.float32)},
        "text": known["in/text"][:, None],
        "label": np.zeros(4, np.int32),
    }
    _, metrics = experiment.train_step(state, experiment.put(batch))
    return {"difference": {ours: relative(metrics[ours], known[f"loss/{name}"]) for ours, name in GOLDEN_TERMS.items()}}


def golden_config() -> ConfigDict:
    """The config of the golden step."""
    config = configs.reference_preset(configs.default())
    config.model.size, config.model.custom, config.model.vocab_size = "custom", GOLDEN_SIZE._asdict(), 512
    config.batch_size, config.total_steps, config.steps_per_epoch = 4, 10, 1
    config.ema.start = config.ema.end = 0.9
    return config


def relative(ours: Any, theirs: Any) -> float:
    """The largest difference, relative to the largest value."""
    return float(np.abs(np.asarray(ours) - np.asarray(theirs)).max() / np.abs(np.asarray(theirs)).max())


def against_cpu(target: Target) -> Values:
    """Loss and gradients of a tiny DetailCLIP in float32 on a device and on the CPU."""
    config = variants.build("configs/stickers.py", {"batch": 4}).config
    config.model.custom, config.model.size = {**sizes.SIZES["tiny"]._asdict(), **SMALL}, "custom"
    (loss, gradient), (expected, known) = (
        loss_and_gradient(config, device) for device in (target.devices[0], jax.devices("cpu")[0])
    )
    return {"loss_difference": relative(loss, expected), "gradient_difference": relative(gradient, known)}


def loss_and_gradient(config: ConfigDict, device: Any) -> tuple[Any, np.ndarray]:
    """Loss and all gradients, as one vector, of the state of step 0 on a batch of noise, on one device."""
    experiment = experiments.build(config, meshes.make_mesh([device]))
    batch = counting.example_batch(counting.batch_shapes(config, config.batch_size, 24, experiment.mesh))
    params = jax.tree.map(lambda x: 0.05 * x, counting.noise(experiment.state_shapes.params))
    teacher = {name: params[name] for name in experiment.state_shapes.ema_params}
    state = state_of(experiment, params=params, ema_params=teacher)
    compute = jax.jit(jax.value_and_grad(lambda p, s, b: experiment.combined_loss(p, s, b)[0]))
    loss, gradient = compute(state.params, state, experiment.put(batch))
    return loss, np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(jax.device_get(gradient))])


def state_of(experiment: Experiment, **known: Any) -> TrainState:
    """A state of these arrays and zeros elsewhere, on the devices of an experiment."""
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), experiment.state_shapes)
    return jax.device_put(zeros.replace(**known), jax.tree.map(lambda shape: shape.sharding, experiment.state_shapes))


def speed(target: Target) -> Values:
    """Seconds, utilisation, memory and compilation of the step, in turn with plain products."""
    measured = products.in_turn(target.result, target.stepper, target.arguments.rounds)
    found = target.result._replace(seconds=measured.seconds)
    compiled, statistics = found.compiled, target.devices[0].memory_stats() or {}
    return {
        "seconds": list(measured.seconds),
        "pairs_per_second": found.pairs_per_second,
        "gigaflops_per_pair": found.flops / 1e9,
        "utilisation_of_peak": found.utilisation if found.utilisation is not None else "unknown peak",
        "share_of_product_rate": list(measured.share),
        **{f"{dtype}_teraflops": [each / 1e12 for each in rate] for dtype, rate in measured.rates.items()},
        "planned_gibibytes": compiled and compiled.memory.total / 2**30,
        "used_gibibytes_at_most": statistics.get("peak_bytes_in_use", 0) / 2**30 or "unknown",
        "compile_seconds": compiled and compiled.seconds,
    }


def alternatives(target: Target) -> Values:
    """Each other setting against the step, in alternation; a setting that fails is reported."""
    found: Values = {}
    for name, settings in COMPARED.items():
        target.console.live(f"comparing: {name}")
        try:
            found[name] = list(target.compare(other_stepper(target, target.changed(settings))))
        except Exception as error:  # out of memory or unsupported
            found[name] = first_line(error)
    return {"times_as_fast": found}


def other_stepper(target: Target, variant: Variant, options: Mapping[str, Any] | None = None) -> Stepper:
    """The compiled step of another variant with a copy of the state, after its first call."""
    experiment = experiments.build(variant.config, target.mesh)
    program = counting.lower(experiment, variant).compile(compiler_options=dict(options or {}))
    return copied(target, experiment, program)


def copied(target: Target, experiment: Experiment, program: Any) -> Stepper:
    """A stepper with the variant's batch and a copy of its state, after its first call."""
    stepper = Stepper.__new__(Stepper)
    stepper.step, stepper.schedules, stepper.batch = program, experiment.schedules, target.stepper.batch
    stepper.state = jax.tree.map(jnp.copy, target.stepper.state)
    stepper()
    return stepper


def pipeline_rate(target: Target) -> Values:
    """Images per second of the data pipeline on this host, and the share of time that the step would wait for it."""
    given = argparse.Namespace(examples=64, rounds=3, workers=max(1, usable_cores() - 1))
    source = data_rate.open_source(target.variant.config)
    rate = data_rate.pipeline_rate(target.variant.config, source, given, target.console)
    wanted = target.variant.batch / timing.median_range(timing.interleaved([target.stepper], 3)[0]).median
    return {
        "images_per_second": list(rate),
        "workers": given.workers,
        "step_takes_per_second": wanted,
        "data_wait": max(0.0, 1 - rate.median / wanted),
    }


def determinism(target: Target) -> Values:
    """Whether two runs of a step from one state are equal to the bit, with and without XLA's deterministic kernels."""
    found: Values = {"equal_by_default": repeats(target, target.result.compiled and target.result.compiled.run)}
    try:
        other = other_stepper(target, target.variant, DETERMINISTIC)
    except Exception as error:  # XLA of another platform does not know the option
        return found | {"deterministic_kernels": first_line(error)}
    return found | {"equal_with_flag": repeats(target, other.step), "times_as_fast": list(target.compare(other))}


def repeats(target: Target, program: Any) -> bool:
    """Whether a step gives the same parameters twice."""
    given = target.stepper
    first, second = (
        jax.device_get(program(jax.tree.map(jnp.copy, given.state), given.batch, given.schedules)[0].params)
        for _ in range(2)
    )
    return all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True))


SECTIONS = (
    Section("machine", "What the numbers were measured on.", machine),
    Section("golden", "Difference from the authors' code on a tiny model: below 1e-5 is equal.", golden),
    Section("against the CPU", "Difference from the CPU, float32: below 1e-4 is equal.", against_cpu),
    Section("step", "The training step as configured, and plain products of large square matrices.", speed),
    Section("settings", "Other settings in alternation with the step; above 1 is faster.", alternatives),
    Section("determinism", "Two runs of one step from the same state.", determinism),
    Section("data", "The host's data pipeline against what the step takes.", pipeline_rate),
)
