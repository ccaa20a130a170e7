"""Pairs of sticker scenes with a caption each, where one caption is the other with one thing exchanged.

    choices = SceneChoices(size=80, num_pairs=200)
    choices[4]["captions"]      # ("a large frog and a small camera", "a small frog and a large camera")

The first caption is true of the scene, the second is not: it is true of the other scene of the pair.  So every caption
is as often true as false, and a reader who sees no image is right in exactly half of the cases.  The scenes are drawn
for these pairs: no run trains on them, and no held-out pair of nouns occurs in them.

| exchange | the two captions |
|---|---|
| object | "a frog and a camera", "a frog and an owl" |
| attribute | "a large frog and a small camera", "a small frog and a large camera" |
| count | "two frogs and a camera", "three frogs and a camera" |
| side | "a frog above a camera", "a frog below a camera"; also to the left and to the right |
| size | "a frog is larger than a camera", "a frog is smaller than a camera" |

`NewPairs` and `NewStatements` have such pairs of what training holds out.

Drawings have no other attribute that a caption could exchange: a noun always has the same colours, so its words alone
would tell which colour is true.
"""

import collections
import dataclasses
import operator
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple, SupportsIndex

import numpy as np
from jaxtyping import Bool, Float

from detailclip_jax.data.stickers.hold_outs import any_number_held_out, held_out
from detailclip_jax.data.stickers.nouns import NOUNS
from detailclip_jax.data.stickers.scene_captions import (
    MARGIN,
    OPPOSITE,
    SIDES,
    direction,
    listed,
    relation,
    size_relation,
)
from detailclip_jax.data.stickers.scene_source import SPLITS, draw_nouns, held_out_pairs
from detailclip_jax.data.stickers.scenes import compose
from detailclip_jax.data.stickers.sprites import Sprites, sprites

EXCHANGES = ("object", "attribute", "count", "side", "size")
STREAM = len(SPLITS)  # of random numbers: the splits of `Stickers` have those before it
SHARES = (3.0, 1.0)  # relative areas of a larger and a smaller object
ALIKE = 1.25  # largest ratio of the boxes of two nouns at equal area, where their sizes are compared

Boxes = Float[np.ndarray, "n 4"]


class Plan(NamedTuple):
    """A scene to draw, and its true captions: one, and the same fact with the nouns in the other order.

    shares: relative areas of the objects; None for random ones.
    fits: whether the captions are true of a layout with these boxes.
    """

    nouns: tuple[int, ...]
    captions: tuple[str, str]
    shares: tuple[float, ...] | None = None
    fits: Callable[[Boxes], bool] | None = None


Pair = tuple[Plan, Plan]


class Nouns(NamedTuple):
    """The nouns of scenes: how two of them are drawn, and which may meet."""

    two: Callable[[np.random.Generator], tuple[int, int]]
    meet: Bool[np.ndarray, "nouns nouns"]


@dataclasses.dataclass(frozen=True)
class SceneChoices:
    """Random access to 2 x 5 x `num_pairs` scenes.  Scenes 2i and 2i + 1 are those of pair i.

    size: side of the canvas in pixels.
    style: source of the drawings; see `sprites`, which raises for one that is missing.

    An example holds "image", "captions" (the true one first), "label" (-1), "key", "exchange", "boxes" and "nouns".
    """

    size: int
    num_pairs: int
    seed: int = 0
    style: str | None = None
    exchanges: ClassVar[Sequence[str]] = EXCHANGES

    def __post_init__(self):
        sprites(self.style)  # raises here what would otherwise fail in a worker

    def __len__(self) -> int:
        return 2 * len(self.exchanges) * self.num_pairs

    def __getitem__(self, index: SupportsIndex) -> dict[str, Any]:
        index = operator.index(index)
        if not 0 <= index < len(self):
            raise IndexError(f"scene {index} of {len(self)}")
        number, which = divmod(index, 2)
        plan, rng = self.pair(number)[which], np.random.default_rng((self.seed, STREAM, number, 1 + which))
        scene = compose(rng, sprites(self.style), plan.nouns, self.size, shares=plan.shares, fits=plan.fits)
        return {
            "image": scene.image,
            "captions": self.captions(index),
            "label": -1,
            "key": f"stickers/choices/{self.seed}/{index}",
            "exchange": exchange_of(index, self.exchanges),
            "boxes": scene.boxes,
            "nouns": np.array(plan.nouns, np.int32),
        }

    def captions(self, index: int) -> tuple[str, str]:
        """Returns the true and the false caption of a scene, which need no drawing."""
        plans = self.pair(index // 2)
        return plans[index % 2].captions[0], plans[1 - index % 2].captions[0]

    def pair(self, number: int) -> Pair:
        """Returns the two scenes of a pair, before they are drawn."""
        rng = np.random.default_rng((self.seed, STREAM, number, 0))
        return PAIRS[exchange_of(2 * number)](rng, sprites(self.style), self.size, trained_nouns())


class NewPairs(SceneChoices):
    """The same with two nouns in each scene that no scene of training shows together."""

    def pair(self, number: int) -> Pair:
        """Returns the two scenes of a pair, before they are drawn."""
        rng = np.random.default_rng((self.seed, STREAM + 1, number, 0))
        return PAIRS[exchange_of(2 * number)](rng, sprites(self.style), self.size, Nouns(_two_new, held_out_pairs()))


class NewStatements(SceneChoices):
    """The same of facts that training states of other nouns only: held-out numbers and directions of a noun."""

    exchanges: ClassVar[Sequence[str]] = ("count", "side")

    def pair(self, number: int) -> Pair:
        """Returns the two scenes of a pair, before they are drawn."""
        rng = np.random.default_rng((self.seed, STREAM + 2, number, 0))
        while True:
            found = PAIRS[exchange_of(2 * number, self.exchanges)](rng, sprites(self.style), self.size, trained_nouns())
            if any(map(_is_new, found)):
                return found


def exchange_of(index: int, exchanges: Sequence[str] = EXCHANGES) -> str:
    """Returns what is exchanged in the captions of scene `index`."""
    return exchanges[index // 2 % len(exchanges)]


def trained_nouns() -> Nouns:
    """The nouns of scenes whose pairs training shows."""
    return Nouns(_two_nouns, ~held_out_pairs())


def _is_new(plan: Plan) -> bool:
    """Whether training states the number of a noun, or its direction, of other nouns only."""
    sides = {direction(side) for side in SIDES if f" {side} " in plan.captions[0]}
    return any_number_held_out(collections.Counter(plan.nouns).items()) or any(
        held_out(noun, side) for noun in plan.nouns for side in sides
    )


def bag_of_words(choices: SceneChoices) -> dict[str, float]:
    """Returns for each exchange the largest share that a text side without word order can reach.

    It is the share of a reader who knows the scene perfectly but gets the words of a caption in no order: he drops a
    caption whose words say nothing true of the scene in any order, and guesses between those that remain.
    """
    pairs = [choices.pair(number) for number in range(len(EXCHANGES) * choices.num_pairs)]
    shares: dict[str, list[float]] = {}
    for number, pair in enumerate(pairs):
        facts = [{_words(text) for text in plan.captions} for plan in pair]
        remain = [sum(_words(plan.captions[0]) in true for plan in pair) for true in facts]
        shares.setdefault(exchange_of(2 * number), []).extend(1 / left for left in remain)
    return {name: float(np.mean(shares[name])) for name in EXCHANGES}


def _words(text: str) -> tuple[str, ...]:
    return tuple(sorted(text.split()))


def _two_nouns(rng: np.random.Generator) -> tuple[int, int]:
    while True:
        first, second = draw_nouns(rng, 2).tolist()
        if first != second:
            return first, second


def _two_new(rng: np.random.Generator) -> tuple[int, int]:
    pairs = np.argwhere(held_out_pairs())
    first, second = pairs[rng.integers(len(pairs))].tolist()
    return first, second


def _a(noun: int) -> str:
    return NOUNS[noun].counted(1)


def _both(rng: np.random.Generator, *phrases: tuple[str, str]) -> list[tuple[str, str]]:
    """Returns each two phrases as a caption and in the other order; the first order is the same random one for all."""
    step = 1 if rng.random() < 0.5 else -1
    return [(listed(two[::step]), listed(two[::-step])) for two in phrases]


def _object(rng: np.random.Generator, drawings: Sprites, size: int, nouns: Nouns) -> Pair:
    kept, first = nouns.two(rng)
    allowed = nouns.meet[kept].copy()
    allowed[[kept, first]] = False
    second = int(rng.choice(np.flatnonzero(allowed)))
    captions = _both(rng, (_a(kept), _a(first)), (_a(kept), _a(second)))
    return Plan((kept, first), captions[0]), Plan((kept, second), captions[1])


def _count(rng: np.random.Generator, drawings: Sprites, size: int, nouns: Nouns) -> Pair:
    counted, other = nouns.two(rng)
    count = int(rng.integers(1, 3))
    numbers = count, count + 1
    captions = _both(rng, *((NOUNS[counted].counted(number), _a(other)) for number in numbers))
    few, many = ((counted,) * number + (other,) for number in numbers)
    return Plan(few, captions[0]), Plan(many, captions[1])


def _side(rng: np.random.Generator, drawings: Sprites, size: int, nouns: Nouns) -> Pair:
    first, second = nouns.two(rng)
    word = ("above", "to the left of")[rng.integers(2)]
    words = word, OPPOSITE[word]

    def plan(word: str) -> Plan:
        captions = f"{_a(first)} {word} {_a(second)}", f"{_a(second)} {OPPOSITE[word]} {_a(first)}"
        fits = lambda boxes: relation(boxes[:1], boxes[1:], MARGIN * size) == word  # noqa: E731
        return Plan((first, second), captions, fits=fits)

    return plan(words[0]), plan(words[1])


def _of_two_sizes(
    rng: np.random.Generator, drawings: Sprites, nouns: Nouns, say: Callable[[int, int, str], tuple[str, str]]
) -> Pair:
    """Returns two scenes of the same two nouns, of which the first is the larger and the smaller one."""
    spread = drawings.extent.prod(-1) / drawings.fill
    first, second = nouns.two(rng)
    while not 1 / ALIKE <= spread[first] / spread[second] <= ALIKE:  # so that each can be the larger one
        first, second = nouns.two(rng)

    def plan(word: str, shares: tuple[float, ...]) -> Plan:
        fits = lambda boxes: size_relation(boxes[:1], boxes[1:]) == word  # noqa: E731
        return Plan((first, second), say(first, second, word), shares, fits)

    return plan("larger than", SHARES), plan("smaller than", SHARES[::-1])


def _size(rng: np.random.Generator, drawings: Sprites, size: int, nouns: Nouns) -> Pair:
    def say(first: int, second: int, word: str) -> tuple[str, str]:
        return f"{_a(first)} is {word} {_a(second)}", f"{_a(second)} is {OPPOSITE[word]} {_a(first)}"

    return _of_two_sizes(rng, drawings, nouns, say)


def _attribute(rng: np.random.Generator, drawings: Sprites, size: int, nouns: Nouns) -> Pair:
    def say(first: int, second: int, word: str) -> tuple[str, str]:
        sizes = ("large", "small") if word == "larger than" else ("small", "large")
        phrases = [f"a {size} {NOUNS[noun].name}" for size, noun in zip(sizes, (first, second))]
        return listed(phrases), listed(phrases[::-1])

    return _of_two_sizes(rng, drawings, nouns, say)


PAIRS: dict[str, Callable[[np.random.Generator, Sprites, int, Nouns], Pair]] = {
    "object": _object,
    "attribute": _attribute,
    "count": _count,
    "side": _side,
    "size": _size,
}
