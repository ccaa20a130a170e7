"""Scenes that are drawn for one stated fact, with false texts that a reader of texts alone cannot tell from true ones.

| kind | a true text | the fact exchanged | a noun exchanged |
|---|---|---|---|
| attribute | "a large frog and a small camera" | "a small frog and a large camera" | "a large owl and a small camera" |
| count | "two frogs and a camera", "two frogs" | "three frogs and a camera" | "two frogs and a kite" |
| side | "a frog above a camera" | "a frog below a camera" | "an owl above a camera" |
| size | "a frog is larger than a camera" | "a frog is smaller than a camera" | "a frog is larger than a kite" |

A statement of a side also has a unary form, which needs no order of words: "a frog at the top". In about half of
these scenes the frog is alone, and the unary form is the only one: there its place alone tells the true text. With a
camera at the bottom of the same scene, the place tells it only together with the noun. All kinds are equally
frequent, numbers are uniform in statements of a count, and half of the scenes repeat a noun.

Of each exchange, true and false texts have the same distribution. An exchange and its reverse are proposed equally
often, and a proposal is accepted with probability min(1, p(new) / p(old)), where p is the frequency of a statement
among true ones. Within a kind and with the same numbers of objects all allowed statements are equally frequent, and in
statements of a count all numbers are. So the probability is 1 for an allowed statement, and 0 for any other: five
frogs, a held-out pair of nouns, or a held-out statement. One frog and four frogs have one allowed neighbour each, two
and three have two: among true and false texts of a count together, the ends are more often true.

Held out from training are the pairs of nouns of `held_out_pairs`, and of each noun some numbers (no text says "three
frogs") and some directions (no text says that a frog is above or below, and no scene is drawn for it). This holds for
the ordinary captions of these scenes, and for those of scenes that are drawn for no fact, as well.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from detailclip_jax.data.stickers.hold_outs import any_number_held_out, held_out, held_out_pairs
from detailclip_jax.data.stickers.nouns import NOUNS, NUMBERS
from detailclip_jax.data.stickers.scene_captions import (
    MARGIN,
    OPPOSITE,
    PLAIN_SHARE,
    SIDES,
    TEMPLATES,
    direction,
    listed,
    relation,
    size_relation,
)
from detailclip_jax.data.stickers.sprites import sprites

KINDS = ("attribute", "count", "side", "size")
UNARY: dict[str, str] = dict(zip(SIDES, ("at the top", "at the bottom", "on the left", "on the right")))
AXIS = {"to the left of": 0, "above": 1}
LINE = 0.3, 0.7  # of the canvas: where the line between the objects of two nouns is drawn
SIZES = ("larger than", "smaller than")
ADJECTIVES: dict[str, tuple[str, str]] = dict(zip(SIZES, (("large", "small"), ("small", "large"))))
MOST = max(NUMBERS)  # objects of one noun
ALONE = 0.5  # of the statements of a count, and of those of a side: scenes without another noun
REPEATS = 5 / 12  # of the other statements: one of the nouns occurs twice or three times; with those of a count a half
SHARES = {"larger than": (3.0, 1.0), "smaller than": (1.0, 3.0)}  # relative areas of the objects of two nouns
ALIKE = 1.25  # largest ratio of the boxes of two nouns at equal area, where their sizes are stated

Boxes = Float[np.ndarray, "n 4"]


class Statement(NamedTuple):
    """One fact of a scene with one or two nouns.

    word: one of SIDES or SIZES; "" of a count. about: the noun whose number is stated.
    """

    kind: str
    word: str
    nouns: tuple[int, ...]
    counts: tuple[int, ...]
    about: int = 0

    def text(self) -> str:
        """Returns the caption without a template."""
        phrases = [NOUNS[noun].counted(count) for noun, count in zip(self.nouns, self.counts)]
        if self.kind == "side" and len(self.nouns) == 1:
            return self.unary(0)
        if self.kind == "side":
            return f"{phrases[0]} {self.word} {phrases[1]}"
        if self.kind == "size":
            return f"{phrases[0]} {'is' if self.counts[0] == 1 else 'are'} {self.word} {phrases[1]}"
        if self.kind == "attribute":
            phrases = [_with(*each) for each in zip(ADJECTIVES[self.word], self.nouns, self.counts)]
        return listed(phrases)

    def unary(self, place: int) -> str:
        """Returns the caption of the side of one noun without the other."""
        side = self.word if place == 0 else OPPOSITE[self.word]
        return f"{NOUNS[self.nouns[place]].counted(self.counts[place])} {UNARY[side]}"

    @property
    def objects(self) -> list[int]:
        """The nouns of the objects of the scene."""
        return [noun for noun, count in zip(self.nouns, self.counts) for _ in range(count)]

    @property
    def shares(self) -> list[float] | None:
        """The relative areas of the objects; None for random ones."""
        if self.word not in SHARES:
            return None
        return [share for share, count in zip(SHARES[self.word], self.counts) for _ in range(count)]

    def holds(self, boxes: Boxes, size: int) -> bool:
        """Whether the fact is true of all objects with these boxes; then the exchanged fact is true of none."""
        first, second = self.groups(boxes)
        if self.kind == "side" and len(self.nouns) == 1:
            return self.places_on_a_side(boxes, size) == [0]
        if self.kind == "side":
            return relation(first, second, MARGIN * size) == self.word
        return self.kind == "count" or size_relation(first, second) == self.word

    def groups(self, boxes: Boxes) -> tuple[Float[np.ndarray, "a 4"], Float[np.ndarray, "b 4"]]:
        """Returns the boxes of the first noun and those of the other."""
        return boxes[: self.counts[0]], boxes[self.counts[0] :]

    def within(self, rng: np.random.Generator) -> Boxes:
        """Draws boxes in shares of the canvas for the centres of the objects.

        Those of a stated side are on their sides of a random line, or, for one noun, of the middle.
        """
        boxes = np.tile((0.0, 0.0, 1.0, 1.0), (sum(self.counts), 1))
        if self.kind == "side":
            line, far = (rng.uniform(*LINE), MARGIN / 2) if len(self.nouns) == 2 else (0.5, MARGIN)
            axis = AXIS[direction(self.word)]
            before, after = self.groups(boxes)[:: 1 if self.word in AXIS else -1]
            before[:, axis + 2], after[:, axis] = line - far, line + far
        return boxes

    def places_on_a_side(self, boxes: Boxes, size: int) -> list[int]:
        """Returns the nouns all of whose objects are on their side of the canvas, `MARGIN` from its middle."""
        axis, sign = AXIS[direction(self.word)], 1 if self.word in AXIS else -1
        offsets = [sign * ((each[:, axis] + each[:, axis + 2]) / 2 - size / 2) for each in self.groups(boxes)]
        distances = (-offsets[0], offsets[1])[: len(self.nouns)]
        return [place for place, far in enumerate(distances) if far.min() >= MARGIN * size]

    def is_allowed(self, style: str | None = None) -> bool:
        """Whether the statement is one of those that occur among true ones."""
        if not all(1 <= count <= MOST for count in self.counts):
            return False
        if any_number_held_out(zip(self.nouns, self.counts)):
            return False
        if self.kind == "side" and any(held_out(noun, direction(self.word)) for noun in self.nouns):
            return False
        pairs = pairs_of_sizes(style) if self.word in SIZES else pairs_of_scenes()
        return len(self.nouns) == 1 or bool(pairs[self.nouns])


def draw(rng: np.random.Generator, style: str | None = None, kinds: Sequence[str] = KINDS) -> Statement:
    """Draws a statement; those of a kind with the same numbers are equally frequent, and so are the `kinds`."""
    kind = kinds[int(rng.integers(len(kinds)))]
    while True:
        statement = _DRAWN[kind](rng, tuple(rng.integers(len(NOUNS), size=2).tolist()))
        if statement.is_allowed(style):
            return statement


def texts(
    rng: np.random.Generator, statement: Statement, boxes: Boxes, size: int, style: str | None = None
) -> tuple[tuple[str, ...], ...]:
    """Returns for each form of a statement, a unary one first, a true text, the fact exchanged and a noun exchanged.

    The three have one template. The second is "" where the exchanged fact is not accepted, the third where no other
    noun is.
    """
    fact, place = with_other_fact(rng, statement, style), int(rng.integers(len(statement.nouns)))
    forms: list[tuple[Callable[[Statement], str], int]] = [(Statement.text, place)]
    if len(statement.nouns) == 2 and statement.kind == "side" and (sided := statement.places_on_a_side(boxes, size)):
        alone = sided[rng.integers(len(sided))]
        forms.insert(0, (lambda each: each.unary(alone), alone))
    triples = []
    for say, at in forms:
        template = TEMPLATES[0 if rng.random() < PLAIN_SHARE else rng.integers(1, len(TEMPLATES))]
        template = TEMPLATES[0] if statement.kind == "size" else template  # a whole sentence
        three = statement, fact, with_other_noun(rng, statement, at, style)
        triples.append(tuple(template.format(say(each)) if each else "" for each in three))
    return tuple(triples)


def with_other_fact(rng: np.random.Generator, statement: Statement, style: str | None = None) -> Statement | None:
    """Returns the statement with its fact exchanged, for a count with one object more or less; None if rejected."""
    other = statement._replace(word=OPPOSITE.get(statement.word, ""))
    if statement.kind == "count":
        counts = list(statement.counts)
        counts[statement.about] += 1 if rng.random() < 0.5 else -1
        other = statement._replace(counts=tuple(counts))
    return other if other.is_allowed(style) else None


def with_other_noun(
    rng: np.random.Generator, statement: Statement, place: int, style: str | None = None
) -> Statement | None:
    """Returns the statement with another noun at a place, drawn from those that make it an allowed one.

    Returns None if there is none.
    """
    for noun in rng.permutation(len(NOUNS)).tolist():
        nouns = list(statement.nouns)
        nouns[place] = noun
        other = statement._replace(nouns=tuple(nouns))
        if noun not in statement.nouns and other.is_allowed(style):
            return other
    return None


def words() -> tuple[str, ...]:
    """Returns texts that together have every word of statements that other captions lack."""
    return (*UNARY.values(), "is are large small")


@functools.cache
def pairs_of_scenes() -> Bool[np.ndarray, "nouns nouns"]:
    """Returns which two nouns occur together in training: shared, do not write to it."""
    return ~held_out_pairs() & ~np.eye(len(NOUNS), dtype=bool)


@functools.cache
def pairs_of_sizes(style: str | None) -> Bool[np.ndarray, "nouns nouns"]:
    """Returns those whose boxes have nearly the same area if their drawings have: each can be the larger one."""
    drawings = sprites(style)
    spread = drawings.extent.prod(-1) / drawings.fill
    ratio = spread[:, None] / spread
    return pairs_of_scenes() & (np.maximum(ratio, ratio.T) <= ALIKE)


def _with(adjective: str, noun: int, count: int) -> str:
    return f"a {adjective} {NOUNS[noun].name}" if count == 1 else f"{NUMBERS[count]} {adjective} {NOUNS[noun].plural}"


def _count(rng: np.random.Generator, nouns: tuple[int, ...]) -> Statement:
    number = 1 + int(rng.integers(MOST))
    if rng.random() < ALONE:
        return Statement("count", "", nouns[:1], (number,))
    about = int(rng.integers(2))
    return Statement("count", "", nouns, (1, number) if about else (number, 1), about)


def _numbers(rng: np.random.Generator) -> tuple[int, int]:
    if rng.random() >= REPEATS:
        return 1, 1
    number = 2 + int(rng.integers(2))
    return (1, number) if rng.random() < 0.5 else (number, 1)


def _of_two(kind: str, words: tuple[str, ...]) -> Callable[[np.random.Generator, tuple[int, ...]], Statement]:
    return lambda rng, nouns: Statement(kind, words[rng.integers(len(words))], nouns, _numbers(rng))


def _side(rng: np.random.Generator, nouns: tuple[int, ...]) -> Statement:
    statement = _of_two("side", SIDES)(rng, nouns)
    if rng.random() >= ALONE:
        return statement
    return statement._replace(nouns=nouns[:1], counts=(max(statement.counts),))


_DRAWN = {
    "attribute": _of_two("attribute", SIZES),
    "count": _count,
    "side": _side,
    "size": _of_two("size", SIZES),
}
