"""The built-in data set: scenes composed on the fly from drawings, with captions, masks and boxes; needs no network.

    source = Stickers(split="train", size=80)
    source[0]["image"], source[0]["captions"]     # uint8 [80, 80, 3], ("a frog above a camera", ...)

Results on these scenes compare only with each other.  Scenes of the held-out splits are new renderings of the same
drawings; to test on new drawings, use another artist's (`style`).
"""

import collections
import dataclasses
import operator
from collections.abc import Sequence
from typing import Any, SupportsIndex

import numpy as np
from jaxtyping import Int

from detailclip_jax.config.settings import split_list
from detailclip_jax.data.stickers.hold_outs import any_number_held_out, held_out_pairs
from detailclip_jax.data.stickers.nouns import CLASS_OF_NOUN, CLASSES, NOUNS
from detailclip_jax.data.stickers.scene_captions import captions, long_caption, prompts
from detailclip_jax.data.stickers.scenes import MIXED, VARIETIES, Scene, alone_on_white, compose
from detailclip_jax.data.stickers.sprites import sprites
from detailclip_jax.data.stickers.statements import KINDS, Statement, draw, texts
from detailclip_jax.runtime.errors import unknown

SPLITS = ("train", "held_out_scenes", "held_out_pairs")
NUM_OBJECTS = (0.4, 0.3, 0.2, 0.1)  # probability of 1, 2, 3 and 4 objects
COPY_SHARE = 0.2  # of the objects after the first: a copy of a noun already chosen
MIN_SIZE = 32
NUM_FALSE = 2  # texts of a stated fact, and phrases of an object
ON_WHITE = "on_white"  # in addition to the names of `VARIETIES`
STATED = "stated"
WHITE_SIDES = (0.25, 0.5, 0.75, 0.95)  # of the canvas: the longer side of scene i is entry i modulo 4


@dataclasses.dataclass(frozen=True)
class Stickers:
    """Random access to `num_scenes` scenes; scene i depends only on (seed, split, i) and the options.

    split: "train" and "held_out_scenes" never show both nouns of a held-out pair together and use separate random
        streams; every scene of "held_out_pairs" shows at least one held-out pair.
    size: side of the canvas in pixels, at least 32.
    single_object: one object per scene, for zero-shot classification.
    style: source of the drawings; see `sprites`.
    scenes: "textured" (large objects on textured grounds, used in evaluation), "mixed" (used in training: adds plain
        grounds, mostly white, and objects of any size), "stated" (grounds and sizes as in "mixed"; the objects are
        chosen for a stated fact, see `statements`), or "on_white" (one unchanged drawing on plain white; its longer
        side takes the shares `WHITE_SIDES` of the canvas in turn).
    ordinary_ratio: the share of "stated" scenes that are drawn as "mixed" ones, for no fact: they have no "states".

    An example holds:
    "image", "captions", "key"
    "long": a caption of several sentences, for caption rules that name this field
    "label": noun index of the object with most visible pixels
    "segmentation" uint8 [H, W]: 0 = background, 1 + index into `CLASSES`
    "instances" uint8 [H, W]: 0 = background, 1 + i for object i
    "boxes" float32 [n, 4] (xyxy, pixels), "classes" int32 [n] and "nouns" int32 [n]: one entry per object
    "phrases": the noun of each object, and "phrase_negatives": for each the same two nouns that the scene does not show
    "states", of "stated" scenes: for each form of the stated fact a true text and two false ones, see `texts`

    Raises ValueError for an unknown split, a canvas that is too small, or an invalid combination of options (such as
    single objects of held-out pairs), and whatever `sprites` raises.
    """

    split: str = "train"
    size: int = 80
    num_scenes: int = 2**24
    seed: int = 0
    single_object: bool = False
    style: str | None = None
    scenes: str = "textured"
    kinds: str = ""
    ordinary_ratio: float = 0.0

    def __post_init__(self):
        if self.split not in SPLITS:
            raise ValueError(f"unknown split {self.split!r} of stickers; known: {', '.join(SPLITS)}")
        if self.size < MIN_SIZE:
            raise ValueError(f"stickers need a canvas of at least {MIN_SIZE} pixels, not size={self.size}")
        if self.single_object and self.split == "held_out_pairs":
            raise ValueError("split 'held_out_pairs' has two objects per scene: use it with single_object=False")
        if self.scenes not in (known := (*VARIETIES, STATED, ON_WHITE)):
            raise ValueError(unknown("scenes of stickers", self.scenes, known))
        for kind in split_list(self.kinds):
            if kind not in KINDS:
                raise ValueError(unknown("kind of stated facts", kind, KINDS))
        if self.kinds and self.scenes != STATED:
            raise ValueError(
                f"kinds {self.kinds!r} are of the facts of scenes {STATED!r}, not of {self.scenes!r}: use "
                f"scenes={STATED}, or leave kinds out"
            )
        if self.scenes == STATED and (self.single_object or self.split == "held_out_pairs"):
            raise ValueError(
                f"scenes {STATED!r} have objects of their own choice: use them without single_object, and with a split "
                "other than 'held_out_pairs'"
            )
        if self.ordinary_ratio and self.scenes != STATED:
            raise ValueError(
                f"ordinary_ratio {self.ordinary_ratio:g} is of scenes {STATED!r}; scenes {self.scenes!r} are all "
                "ordinary: set it to 0"
            )
        if self.scenes == ON_WHITE and not self.single_object:
            raise ValueError(f"scenes {ON_WHITE!r} have one object each: use them with single_object=True")
        sprites(self.style)  # raises here what would otherwise fail in a worker

    @property
    def name(self) -> str:
        """Name of the source in messages."""
        return "stickers"

    def __len__(self) -> int:
        return self.num_scenes

    def __getitem__(self, index: SupportsIndex) -> dict[str, Any]:
        index = operator.index(index)
        if not 0 <= index < self.num_scenes:
            raise IndexError(f"scene {index} of {self.num_scenes}")
        rng = np.random.default_rng((self.seed, SPLITS.index(self.split), index))
        kinds = (split_list(self.kinds) or KINDS) if self.scenes == STATED else ()
        if self.ordinary_ratio and rng.random() < self.ordinary_ratio:
            kinds = ()
        statement = draw(rng, self.style, kinds) if kinds else None
        if statement:
            nouns = np.array(statement.objects, np.int32)
        elif self.split == "held_out_pairs":
            nouns = draw_held_out(rng)
        else:
            nouns = draw_nouns(rng, 1 if self.single_object else draw_count(rng))
            while self.scenes == STATED and any_number_held_out(collections.Counter(nouns.tolist()).items()):
                nouns = draw_nouns(rng, draw_count(rng))
        scene = self._scene(rng, nouns.tolist(), index, statement)
        classes = np.array(CLASS_OF_NOUN, np.int32)[nouns]
        return {
            "image": scene.image,
            "captions": captions(rng, nouns, scene.boxes, self.size, hold_out=self.scenes == STATED),
            "long": long_caption(nouns, scene.boxes, self.size),
            "label": int(nouns[np.argmax(scene.areas)]),
            "key": f"stickers/{self.split}/{self.seed}/{index}",
            "segmentation": np.concatenate([[0], 1 + classes]).astype(np.uint8)[scene.instances],
            "instances": scene.instances,
            "boxes": scene.boxes,
            "classes": classes,
            "nouns": nouns,
            **({"states": texts(rng, statement, scene.boxes, self.size, self.style)} if statement else {}),
            "phrases": tuple(NOUNS[noun].counted(1) for noun in nouns),
            "phrase_negatives": (false_phrases(rng, nouns, kinds, self.style),) * len(nouns),
        }

    def _scene(self, rng: np.random.Generator, nouns: list[int], index: int, statement: Statement | None) -> Scene:
        drawings = sprites(self.style)
        if self.scenes == ON_WHITE:
            return alone_on_white(rng, drawings, nouns[0], self.size, WHITE_SIDES[index % len(WHITE_SIDES)])
        if statement is None:
            return compose(rng, drawings, nouns, self.size, VARIETIES.get(self.scenes, MIXED))
        fits = lambda boxes: statement.holds(boxes, self.size)  # noqa: E731
        return compose(rng, drawings, nouns, self.size, MIXED, statement.shares, fits, statement.within)


def canvas_of(image_size: int) -> int:
    """Returns the side of the scenes' canvas in pixels for a model's image size: a quarter larger, for crops."""
    return image_size * 5 // 4


def false_phrases(
    rng: np.random.Generator, nouns: Int[np.ndarray, " n"], kinds: Sequence[str], style: str | None = None
) -> tuple[str, ...]:
    """Returns `NUM_FALSE` nouns that a scene does not show, as frequent as the nouns of scenes.

    kinds: of the facts that scenes are drawn for; () where there is none.
    """
    found: list[int] = []
    while len(found) < NUM_FALSE:
        noun = int(rng.choice(draw(rng, style, kinds).objects) if kinds else rng.integers(len(NOUNS)))
        if noun not in nouns and noun not in found:
            found.append(noun)
    return tuple(NOUNS[noun].counted(1) for noun in found)


def draw_count(rng: np.random.Generator, least: int = 1) -> int:
    """Draws a number of objects with the probabilities `NUM_OBJECTS`, on condition that it is at least `least`."""
    share = np.array(NUM_OBJECTS[least - 1 :])
    return least + int(rng.choice(len(share), p=share / share.sum()))


def draw_nouns(rng: np.random.Generator, count: int) -> Int[np.ndarray, " n"]:
    """Draws the nouns of a scene without a held-out pair; a noun may occur several times."""
    chosen = [int(rng.integers(len(NOUNS)))]
    for _ in range(count - 1):
        allowed = ~held_out_pairs()[chosen].any(0)
        chosen.append(_next(rng, chosen, np.flatnonzero(allowed)))
    return np.array(chosen, np.int32)


def draw_held_out(rng: np.random.Generator) -> Int[np.ndarray, " n"]:
    """Draws the nouns of a scene with a held-out pair and up to two further objects, in random order."""
    pairs = np.argwhere(held_out_pairs())
    chosen = pairs[rng.integers(len(pairs))].tolist()
    for _ in range(draw_count(rng, least=2) - 2):
        chosen.append(_next(rng, chosen, np.arange(len(NOUNS))))
    return rng.permutation(np.array(chosen, np.int32))


def _next(rng: np.random.Generator, chosen: list[int], allowed: Int[np.ndarray, " allowed"]) -> int:
    return int(rng.choice(chosen if rng.random() < COPY_SHARE else allowed))


def zero_shot_prompts() -> tuple[tuple[str, ...], ...]:
    """Returns for every noun the captions that name it alone ("a frog", "a picture of a frog", ...)."""
    return tuple(prompts(noun) for noun in range(len(NOUNS)))


def noun_names() -> tuple[str, ...]:
    """Returns the names of the labels, in order."""
    return tuple(noun.name for noun in NOUNS)


def class_names() -> tuple[str, ...]:
    """Returns the names of a segmentation map's values: "background", then the classes."""
    return ("background", *CLASSES)
