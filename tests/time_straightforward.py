"""Times DetailCLIP's training step against the straightforward one, in turn, float32 on this CPU; no test.

    python tests/time_straightforward.py --size=B/16 --rounds=8
    python tests/time_straightforward.py --size=B/16 --words=32   # captions of 32 tokens: ours cuts the rest of 77 off
    python tests/time_straightforward.py --batch=32 --count-only  # FLOP of the straightforward step, without compiling

Both take the same state and batch and must find the same loss; ratios are of CPU seconds and of the clock.
"""

import argparse
import json
import pathlib
import time

import jax
import numpy as np
import optax
import straightforward

from detailclip_jax import config
from detailclip_jax.benchmarks import timing
from detailclip_jax.data import caption_lengths
from detailclip_jax.methods import running_statistics
from detailclip_jax.training import ema, experiment, mesh, optimizer
from detailclip_jax.training.train_step import ScheduledStep

START, END = 49406, 49407


def build(size, batch):
    """DetailCLIP as the reference masks it."""
    c = config.default()
    c.model.size, c.batch_size, c.masking.granularity = size, batch, "cell2x2"
    c.total_steps, c.steps_per_epoch = 10, 5
    return experiment.build(c, mesh.make_mesh(jax.devices()[:1]))


def straightforward_step(exp):
    """A whole step on the loss without savings: the same optimiser, teacher and centers."""

    def step(state, batch, given):
        setup = exp.setup._replace(schedules=given)
        moved = ema.update(state.ema_params, state.params, setup.schedules.ema_momentum(state.step))
        temperatures = {name: at(state.step) for name, at in setup.schedules.temperatures.items()}

        def loss(params):
            params = optimizer.stop_frozen(params, setup.groups)
            return straightforward.combined_loss(params, moved, batch, state.running, temperatures, exp.config)

        (value, means), gradients = jax.value_and_grad(loss, has_aux=True)(state.params)
        updates, opt_state = setup.optimizer.update(gradients, state.opt_state, state.params)
        momentum = exp.config.losses.center_momentum
        after = state.replace(
            step=state.step + 1,
            params=optimizer.clamp(optax.apply_updates(state.params, updates), exp.method.networks, exp.setup.groups),
            ema_params=moved,
            opt_state=opt_state,
            running={
                name: running_statistics.update_center(old, means[name], momentum)
                for name, old in state.running.items()
            },
        )
        return after, {"loss": value, "grad_norm": optax.tree.norm(gradients)}

    return ScheduledStep(jax.jit(step, donate_argnums=0), exp.schedules)


def example(exp, words):
    """Images of noise and captions of that many tokens in a context of 77."""
    rng = np.random.default_rng(0)
    batch = jax.tree.map(np.asarray, experiment.dummy_batch(exp.config, exp.config.batch_size))
    images = rng.integers(0, 256, batch["image"]["large"].shape).astype(np.uint8)
    text = np.zeros_like(batch["text"])
    text[..., :words] = rng.integers(1, START, text[..., :words].shape)
    text[..., 0], text[..., words - 1] = START, END
    return {**batch, "image": {"large": images}, "text": text}


class Stepper:
    """A compiled step with its state and batch; every call is one step."""

    def __init__(self, name, step, exp, batch):
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch)
        lowered, self.schedules = step.lower(exp.state_shapes, shapes), step.schedules
        self.program, self.batch, self.state = lowered.compile(), exp.put(batch), exp.init(0)
        self.seconds = []  # by the clock
        self.state, metrics = self.program(self.state, self.batch, self.schedules)
        loss, norm, flops = metrics["loss"], metrics["grad_norm"], lowered.cost_analysis()["flops"]
        each = flops / exp.config.batch_size / 1e9
        print(f"{name}: {each:.1f} GFLOP/pair, first loss {loss:.6f}, gradient {norm:.6f}", flush=True)

    def __call__(self):
        began = time.perf_counter()
        self.state, _ = self.program(self.state, self.batch, self.schedules)
        jax.block_until_ready(self.state)
        self.seconds.append(time.perf_counter() - began)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="B/16")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--words", type=int, default=77, help="tokens of every caption")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--count-only", action="store_true", help="count FLOP of the straightforward step")
    parser.add_argument("--json", type=pathlib.Path, help="also write the results to this file")
    arguments = parser.parse_args()
    exp = build(arguments.size, arguments.batch)
    batch = example(exp, arguments.words)
    found = count(exp, batch) if arguments.count_only else compare(exp, batch, arguments.rounds)
    if arguments.json:
        arguments.json.write_text(json.dumps([found], indent=2) + "\n")


def count(exp, batch):
    """GFLOP per pair of the straightforward step, before XLA optimises."""
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch)
    flops = straightforward_step(exp).lower(exp.state_shapes, shapes).cost_analysis()["flops"]
    print(f"straightforward: {flops / exp.config.batch_size / 1e9:.1f} GFLOP/pair")
    return {"gflop_per_pair": flops / exp.config.batch_size / 1e9}


def compare(exp, batch, rounds):
    """Times both steps in turn: clock -> seconds of both and ratios, each as (median, low, high)."""
    cut = caption_lengths.trimmed(
        batch, caption_lengths.lengths_within(exp.config.data.text_buckets, exp.config.model.context_length)
    )
    plain = Stepper("straightforward", straightforward_step(exp), exp, batch)
    ours = Stepper("ours", exp.train_step, exp, cut)
    cpu, found = timing.interleaved((plain, ours), rounds, time.process_time), {}
    for name, (theirs, own) in {"cpu": cpu, "clock": (plain.seconds, ours.seconds)}.items():
        both = {"straightforward": timing.median_range(theirs), "ours": timing.median_range(own)}
        found[name] = both | {"times_as_fast": timing.ratios(theirs, own)}
        print(
            f"{name}, seconds: {both['straightforward']} against {both['ours']}, {found[name]['times_as_fast']} times"
        )
    return found


if __name__ == "__main__":
    main()
