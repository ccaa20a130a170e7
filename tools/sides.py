"""Which encoder of a model is blind to a stated side ("a frog above a camera"): probes of images and of texts.

    PYTHONPATH=. python tools/sides.py 2000 runs/statements runs/clip      # 2,000 scenes; two checkpoints

For scenes of two nouns with a stated side, of which a half trains the probes and the other half is measured, per cent:

    unary     the model chooses between "a frog at the top" and "a frog at the bottom"
    relation  the model chooses between "a frog above a camera" and "a frog below a camera"
    image     a probe of the image's embedding chooses the relation, as if the texts were perfect: it has a vector for
              each noun and direction, whose product with the embedding says on which side the noun is
    text      a probe of the embeddings of the two texts chooses the relation in the same way, as if the images were
              perfect: the true places of the nouns are known

Chance is 50. `place` is the share of the variance of an object's centre that a linear map of the image's embedding
explains, for scenes of one object (R2), and `cosine` that of the texts of opposite unary sides.
"""

import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from detailclip_jax.data.stickers.nouns import NOUNS
from detailclip_jax.data.stickers.scene_source import SPLITS, STATED, Stickers
from detailclip_jax.data.stickers.statements import AXIS, direction, draw
from detailclip_jax.inference.model import Model, load

SPLIT, SEED, SIZE = "held_out_scenes", 7, 80
DECAY, STEPS, RATE = 1e-4, 400, 0.02  # of the probes, trained with Adam
RIDGE = 1e-3


class Sided(NamedTuple):
    """Scenes of two nouns with a stated side.

    texts: of each scene the unary text, the relation, and both with the opposite side. places: a number for (noun,
    axis) of each of the two nouns. signs: 1 where the first noun is above or to the left of the other, else -1.
    """

    images: list[np.ndarray]
    texts: list[tuple[str, str, str, str]]
    places: Int[np.ndarray, "n 2"]
    signs: Float[np.ndarray, " n"]


def sided(count: int) -> Sided:
    """Draws `count` scenes whose side has a unary form."""
    source = Stickers(SPLIT, size=SIZE, seed=SEED, scenes=STATED)
    images, texts, places, signs = [], [], [], []
    index = -1
    while len(images) < count:
        index += 1
        statement = draw(np.random.default_rng((SEED, SPLITS.index(SPLIT), index)))
        if statement.kind != "side" or len(statement.nouns) == 1:
            continue
        example = source[index]
        if len(example["states"]) == 2 and all(states[1] for states in example["states"]):
            (unary, unary_false, _), (relation, relation_false, _) = example["states"]
            images.append(example["image"])
            texts.append((unary, relation, unary_false, relation_false))
            places.append([2 * noun + AXIS[direction(statement.word)] for noun in statement.nouns])
            signs.append(1.0 if statement.word in AXIS else -1.0)
    return Sided(images, texts, np.array(places), np.array(signs))


def probe(vectors: Float[np.ndarray, "n D"], places: Int[np.ndarray, "n 2"], signs: Float[np.ndarray, " n"]) -> float:
    """Trains a vector for each place on the first half of the scenes; returns the per cent right of the second.

    A scene is right if `sign * vector @ (probe[first place] - probe[second place])` is positive.
    """
    x = jnp.asarray((vectors - vectors.mean(0)) / (vectors.std(0) + 1e-6) / np.sqrt(vectors.shape[1]))
    half, optimizer, sides = len(x) // 2, optax.adam(RATE), jnp.asarray(signs)

    def scores(probes: Float[Array, "P D"], rows: slice) -> Float[Array, " m"]:
        return sides[rows] * ((probes[places[rows, 0]] - probes[places[rows, 1]]) * x[rows]).sum(1)

    def loss(probes: Float[Array, "P D"]) -> Float[Array, ""]:
        return jax.nn.softplus(-scores(probes, slice(half))).mean() + DECAY * (probes**2).sum()

    @jax.jit
    def step(probes: Float[Array, "P D"], state: optax.OptState) -> tuple[Float[Array, "P D"], optax.OptState]:
        updates, state = optimizer.update(jax.grad(loss)(probes), state)
        return jnp.asarray(optax.apply_updates(probes, updates)), state

    probes = jnp.zeros((2 * len(NOUNS), x.shape[1]))
    state = optimizer.init(probes)
    for _ in range(STEPS):
        probes, state = step(probes, state)
    return 100 * float((scores(probes, slice(half, None)) > 0).mean())


def explained(features: Float[np.ndarray, "n D"], values: Float[np.ndarray, "n K"]) -> float:
    """Returns the share of the variance that a linear map, fitted to the first half, explains in the second (R2)."""
    half, x = len(features) // 2, np.c_[features, np.ones(len(features))].astype(np.float64)
    weights = np.linalg.solve(x[:half].T @ x[:half] + RIDGE * np.eye(x.shape[1]), x[:half].T @ values[:half])
    wrong = ((values[half:] - x[half:] @ weights) ** 2).mean(0)
    return float((1 - wrong / values[half:].var(0)).mean())


def measure(model: Model, scenes: Sided) -> dict[str, float]:
    """Returns the numbers of one model; see above."""
    images = model.encode_image(scenes.images)
    texts = np.stack([model.encode_text([each[form] for each in scenes.texts]) for form in range(4)])
    half, true, false = len(images) // 2, texts[:2], texts[2:]
    unary, relation = 100 * ((images * (true - false)).sum(-1) > 0)[:, half:].mean(1)
    alone = Stickers(SPLIT, size=SIZE, seed=SEED, single_object=True, scenes="mixed")
    examples = [alone[index] for index in range(len(images))]
    centres = np.array([(each["boxes"][0][:2] + each["boxes"][0][2:]) / 2 for each in examples])
    return {
        "unary": float(unary),
        "relation": float(relation),
        "image": probe(images, scenes.places, scenes.signs),
        "text": probe(true[1] - false[1], scenes.places, scenes.signs),
        "place": explained(model.encode_image([each["image"] for each in examples]), centres),
        "cosine": float((true[0] * false[0]).sum(1).mean()),
    }


if __name__ == "__main__":
    drawn = sided(int(sys.argv[1]))
    for name in sys.argv[2:]:
        numbers = measure(load(name), drawn)
        print(
            name,
            ", ".join(f"{key} {value:.3f}" if value <= 1 else f"{key} {value:.1f}" for key, value in numbers.items()),
        )
