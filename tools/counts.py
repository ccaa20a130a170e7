"""Which encoder of a model is blind to a stated number ("two frogs"): its choice, and what its images tell of numbers.

    PYTHONPATH=. python tools/counts.py 1500 runs/statements          # 1,500 scenes; any number of checkpoints
    PYTHONPATH=. python tools/counts.py 1500 runs/statements --train=600    # also 600 steps on the true numbers

Scenes state one number, and the false text has one object more or less.  Per cent, chance 50:

    alone     the model chooses between "two frogs" and "three frogs"
    beside    the same, where the scene shows another noun as well

`number` is the share of the variance of the number that a linear map of the image's embedding explains, for scenes of
one noun, of which a half trains the map (R2; random embeddings of 64 numbers give -.23 with 750 scenes), and `cosine`
that of the true and the false text.  With --train the image encoder is trained with Adam to tell the number, as if the
texts were perfect; each line has the R2 and the per cent of scenes of one or two, and of two or three objects, that it
tells apart, on scenes that it was not trained on.
"""

import argparse
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float
from sides import explained

from detailclip_jax.data.stickers.scene_source import STATED, Stickers
from detailclip_jax.inference.model import Model, load
from detailclip_jax.types import PyTree

SEED, SIZE = 9, 80
TRAINED, UNSEEN = 9000, 1000  # scenes of --train
BATCH, RATE, WARMUP, EVERY = 128, 1e-3, 40, 50
GAIN = 8.0  # embeddings have length 1


class Counted(NamedTuple):
    """Scenes with a stated number."""

    images: list[np.ndarray]
    texts: list[tuple[str, str]]  # true and false
    numbers: Float[np.ndarray, " n"]  # of the noun that occurs most often
    alone: np.ndarray  # whether the scene has one noun


def scenes(split: str, size: int) -> Iterator[tuple[np.ndarray, tuple[str, str], int, bool]]:
    """Draws scenes with a stated number: image, texts, number, and whether there is one noun alone."""
    source = Stickers(split, size=size, seed=SEED, scenes=STATED, kinds="count")
    for index in range(len(source)):
        example = source[index]
        ((true, false, _),) = example["states"]
        numbers = np.unique(example["nouns"], return_counts=True)[1]
        yield example["image"], (true, false), int(numbers.max()), len(numbers) == 1


def counted(count: int) -> Counted:
    """Draws `count` scenes that have a false text."""
    drawn = (each for each in scenes("held_out_scenes", SIZE) if each[1][1])
    images, texts, numbers, alone = zip(*(next(drawn) for _ in range(count)))
    return Counted(list(images), list(texts), np.array(numbers, float), np.array(alone))


def measure(model: Model, drawn: Counted) -> dict[str, float]:
    """Returns the numbers of one model; see above."""
    images = model.encode_image(drawn.images)
    true, false = (model.encode_text([pair[which] for pair in drawn.texts]) for which in (0, 1))
    right = 100 * ((images * (true - false)).sum(1) > 0)
    return {
        "alone": float(right[drawn.alone].mean()),
        "beside": float(right[~drawn.alone].mean()),
        "number": explained(images[drawn.alone], drawn.numbers[drawn.alone, None]),
        "cosine": float((true * false).sum(1).mean()),
    }


def train(model: Model, steps: int) -> None:
    """Trains the image encoder on true numbers of scenes of one noun, and prints what it tells of unseen ones."""
    drawn = (each for each in scenes("train", model.config.model.image_size) if each[3])
    images, _, numbers, _ = zip(*(next(drawn) for _ in range(TRAINED + UNSEEN)))
    x, y = np.stack(images), np.array(numbers, np.float32) - 2.5
    params = {"model": jax.tree.map(jnp.asarray, model.params), "map": jnp.zeros(model.embedding_width)}
    optimizer = optax.adam(optax.linear_schedule(0, RATE, WARMUP))

    @jax.jit
    def predicted(params: PyTree, images: Array) -> Float[Array, " B"]:
        return GAIN * model.encode.image(params["model"], images) @ params["map"]

    @jax.jit
    def step(params: PyTree, state: optax.OptState, images: Array, numbers: Array) -> tuple[PyTree, optax.OptState]:
        grads = jax.grad(lambda params: ((predicted(params, images) - numbers) ** 2).mean())(params)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), state

    state, rng, unseen = optimizer.init(params), np.random.default_rng(0), slice(TRAINED, None)
    for done in range(1, steps + 1):
        rows = rng.integers(TRAINED, size=BATCH)
        params, state = step(params, state, x[rows], y[rows])
        if done % EVERY == 0:
            found, true = np.asarray(predicted(params, x[unseen])), y[unseen]
            r2 = 1 - ((found - true) ** 2).mean() / true.var()
            apart = [100 * ((found > at) == (true > at))[abs(true - at) < 1].mean() for at in (-1, 0)]
            print(f"  step {done}: R2 {r2:.2f}, one or two {apart[0]:.0f}, two or three {apart[1]:.0f}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("count", type=int)
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--train", type=int, default=0, metavar="STEPS")
    given = parser.parse_args()
    drawn = counted(given.count)
    for name in given.runs:
        model = load(name)
        print(name, ", ".join(f"{key} {value:.2f}" for key, value in measure(model, drawn).items()), flush=True)
        if given.train:
            train(model, given.train)
