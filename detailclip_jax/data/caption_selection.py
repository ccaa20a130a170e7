"""Rules that choose the captions of an example for training."""

import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

STATES = "states"
CAPTION_RULES = ("random", "first", "concat", STATES)  # of one caption; they use all captions of an example
FIELD = "field:"
ANY_NUMBER = ("crops", "diverse", "parts")  # of any number of captions
SENTENCE_RULES = (*ANY_NUMBER, "debias")  # of several captions
SOURCES = "sources:"
NO_CAPTIONS = ("key", "negatives")  # fields of an example that hold text but no caption
FORM = (
    f"{', '.join(CAPTION_RULES)}, {FIELD}NAME,... (by name, the first that is not blank), "
    f"{', '.join(SENTENCE_RULES)} (of all captions, or of the fields NAME,... after a colon), "
    f"{SOURCES}NAME,NAME/NAME,... (one caption from each field; / draws one of several)"
)
SENTENCE_END = re.compile(r"\n|</s>|\.")
NUM_SENTENCE_CAPTIONS = 8  # captions of an example by these rules, unless the user gives another number
NUM_DEBIAS = 2  # captions of "debias"
NUM_GLOBAL = 2  # captions of several sentences in "crops"; COSMOS has as many global crops of the image
MAX_GLOBAL = 5  # sentences of such a caption
MAX_DIVERSE = 3  # sentences of a caption in "diverse"
BETWEEN = ". "  # joins sentences


class CaptionRule(NamedTuple):
    """A parsed rule: its name and, for each list of field names in it, these names."""

    name: str
    fields: tuple[tuple[str, ...], ...] = ()


def captions_of(example: Mapping[str, Any], rule: str, rng: np.random.Generator, num: int = 1) -> tuple[str, ...]:
    """Returns the captions of an example by a rule: `num` for rules of several captions, see `num_captions`.

    "parts" (B-CLIP): first a caption of num - 1 distinct sentences in random order, then each of them; fewer sentences
        keep their order, and "" fills up.
    "crops" (COSMOS): first two captions of 1 to 5 distinct sentences each, then captions of one sentence each, drawn
        without replacement; k of these and n < k sentences use each sentence floor(k / n) or ceil(k / n) times.
    "diverse" (FLAIR): captions of 1 to 3 sentences each.  Of those with several, half are consecutive sentences and
        half are distinct random ones.
    "sources:web,long" (TIPS): a caption of the field `web`, then one of the field `long`.  "sources:web,one/two"
        (TIPSv2): the second comes from `one` or `two`, drawn uniformly among those that are not blank.
    "debias" (DeBias-CLIP): all sentences, then 1 to all of them but the first, in random order.  The second caption has
        paddings before its words, see `is_shifted`.

    Sentences are those of all captions (see `sentences_of`), or of the fields in "crops:NAME,...".  A caption of fewer
    sentences than were drawn has all of them once; the published codes of COSMOS and FLAIR repeat some within the
    caption.  Captions are "" where there is no text.  Any other rule gives one caption, see `caption_of`.
    """
    parsed = parse(rule)
    if parsed.name == "sources":
        drawn = []
        for names in parsed.fields:
            fields = [valid for name in names if (valid := not_blank(texts(example.get(name))))]
            drawn.append(_draw(_draw(fields, rng), rng) if fields else "")
        return tuple(drawn)
    if parsed.name in SENTENCE_RULES:
        sentences = sentences_for(example, rule)
        return RULES[parsed.name](sentences, rng, num) if sentences else ("",) * num
    return (caption_of(example, rule, rng),)


def caption_of(example: Mapping[str, Any], rule: str, rng: np.random.Generator) -> str:
    """Returns the caption of an example by a rule of one caption, or "" if it has blank texts alone.

    "random": one of the captions that are not blank (the paper draws title or description).
    "first": the first caption that is not blank.
    "states": the first, which `false_texts.stated` has made of a fact of a scene of stickers.
    "concat": all captions that are not blank, joined by spaces (title + " " + description in the reference code).
    "field:title": that field; "field:title,description": the second field if the first is blank, and so on.  If a field
        holds several texts, one is drawn.
    """
    if rule.startswith(FIELD):
        fields = (not_blank(texts(example.get(name))) for name in parse(rule).fields[0])
        first = next(filter(None, fields), [""])
        return _draw(first, rng)
    valid = not_blank(example["captions"])
    if rule == "concat" or not valid:
        return " ".join(valid)
    return valid[rng.integers(len(valid)) if rule == "random" else 0]


def num_captions(data: ConfigDict) -> int:
    """Returns the number of captions of each example by `config.data`, see `captions_by`."""
    return captions_by(data.caption, data.num_captions)


def captions_by(rule: str, num: int | None = None) -> int:
    """Returns the number of captions that a rule gives: `num` by "crops", "diverse" and "parts", without it 8.

    Raises ValueError for an unknown rule, for a number that is too small for it, and for a number other than its own if
    the rule has one: 1, 2 of "debias", or the number of fields of "sources".

    captions_by("crops") == 8;  captions_by("diverse", 4) == 4;  captions_by("sources:web,long") == 2
    """
    parsed = parse(rule)
    if parsed.name not in ANY_NUMBER:
        fixed = {"sources": len(parsed.fields), "debias": NUM_DEBIAS}.get(parsed.name, 1)
        if num not in (None, fixed):
            raise ValueError(
                f"data.num_captions {num} does not fit data.caption {rule!r}, which gives {fixed}; set "
                f"--config.data.num_captions={fixed}, or data.caption to {' or '.join(ANY_NUMBER)}"
            )
        return fixed
    num, least = NUM_SENTENCE_CAPTIONS if num is None else num, 1 if parsed.name == "diverse" else NUM_GLOBAL
    if num < least:
        raise ValueError(f"data.num_captions {num} is too small for data.caption {rule!r}: at least {least}")
    return num


def reset_num_captions(config: ConfigDict, user_fields: Iterable[str]) -> ConfigDict:
    """Returns the config without the file's `data.num_captions` if the user's `data.caption` has a number of its own.

    `user_fields`: dotted names of fields that the user has set.  Raises ValueError for an unknown rule.
    """
    names, data = set(user_fields), config.data
    if "data.caption" not in names or "data.num_captions" in names or parse(data.caption).name in ANY_NUMBER:
        return config
    changed = ConfigDict(config.to_dict())
    changed.data.num_captions = None
    return changed


def is_shifted(rule: str, number: int) -> bool:
    """Returns whether caption `number` of an example has paddings before its words (`Tokenizer.row`)."""
    return parse(rule).name == "debias" and number > 0


def sentences_for(example: Mapping[str, Any], rule: str) -> list[str]:
    """Returns the sentences that a rule draws from: of all captions, or of the fields that it names."""
    fields = parse(rule).fields
    if not fields:
        return sentences_of(example["captions"])
    return sentences_of([text for name in fields[0] for text in texts(example.get(name))])


def sentences_of(captions: Sequence[str]) -> list[str]:
    """Splits captions at new lines, "</s>" and full stops; blank and repeated sentences are left out.

    Every full stop ends a sentence, also in abbreviations and numbers, as in the code of DreamLIP, COSMOS and FLAIR.

    sentences_of(["A dog. A cat.", "A dog"]) == ["A dog", "A cat"]
    """
    parts = [part.strip() for caption in captions for part in SENTENCE_END.split(caption)]
    return list(dict.fromkeys(part for part in parts if part))


def crops(sentences: Sequence[str], rng: np.random.Generator, num: int) -> tuple[str, ...]:
    """Draws two captions of 1 to 5 distinct sentences, then `num - 2` of one sentence each (COSMOS, 2412.01814)."""
    joined = [BETWEEN.join(_distinct(sentences, rng, 1 + int(rng.integers(MAX_GLOBAL)))) for _ in range(NUM_GLOBAL)]
    num_single = num - NUM_GLOBAL
    rounds = [_distinct(sentences, rng, len(sentences)) for _ in range(0, num_single, len(sentences))]
    return (*joined, *[*itertools.chain.from_iterable(rounds)][:num_single])


def diverse(sentences: Sequence[str], rng: np.random.Generator, num: int) -> tuple[str, ...]:
    """Draws `num` captions of 1 to 3 sentences: consecutive or random ones with equal probability (FLAIR, 2412.03561).

    Every window of consecutive sentences can be drawn; the published code never draws the last one.
    """
    captions = []
    for _ in range(num):
        count = min(1 + int(rng.integers(MAX_DIVERSE)), len(sentences))
        if count > 1 and rng.random() < 0.5:
            first = int(rng.integers(len(sentences) - count + 1))
            captions.append(BETWEEN.join(sentences[first : first + count]))
        else:
            captions.append(BETWEEN.join(_distinct(sentences, rng, count)))
    return tuple(captions)


def parts(sentences: Sequence[str], rng: np.random.Generator, num: int) -> tuple[str, ...]:
    """Draws `num - 1` distinct sentences; returns their join, then each of them (B-CLIP, 2512.12678).

    Fewer sentences are all taken, in their order, and "" fills up.
    """
    drawn = sentences if len(sentences) < num - 1 else _distinct(sentences, rng, num - 1)
    return (BETWEEN.join(drawn), *drawn, *[""] * (num - 1 - len(drawn)))


def debias(sentences: Sequence[str], rng: np.random.Generator, num: int) -> tuple[str, ...]:
    """Returns all sentences, then 1 to all of them but the first, in random order (DeBias-CLIP, 2602.22419).

    Without the first one, which sums up the others, the later sentences count.  A single sentence is both captions.
    """
    rest = sentences[1:] or sentences
    return BETWEEN.join(sentences), BETWEEN.join(_distinct(rest, rng, 1 + int(rng.integers(len(rest)))))


def _distinct(sentences: Sequence[str], rng: np.random.Generator, num: int) -> list[str]:
    """Draws `num` entries of a list without replacement, in random order; all of them if there are fewer."""
    order: list[int] = rng.permutation(len(sentences))[:num].tolist()
    return [sentences[index] for index in order]


RULES: dict[str, Callable[[Sequence[str], np.random.Generator, int], tuple[str, ...]]] = {
    "crops": crops,
    "diverse": diverse,
    "parts": parts,
    "debias": debias,
}


def _draw(values: Sequence[Any], rng: np.random.Generator) -> Any:
    """Draws one of the values; a single one needs no random number."""
    return values[int(rng.integers(len(values))) if len(values) > 1 else 0]


def not_blank(captions: Iterable[str]) -> list[str]:
    """Returns the captions that have more than white space, in their order."""
    return [caption for caption in captions if caption.strip()]


def texts(value: Any) -> Sequence[str]:
    """Returns the texts of a field; empty if the field holds anything but texts."""
    if isinstance(value, str):
        return (value,)
    is_texts = isinstance(value, list | tuple) and all(isinstance(text, str) for text in value)
    return value if is_texts else ()


def is_blank(value: Any) -> bool:
    """Returns whether a field holds no text, or only blank ones."""
    return not not_blank(texts(value))


def parse(rule: str) -> CaptionRule:
    """Parses a rule; raises ValueError, with the list of rules, for an unknown one.

    parse("sources:web,one/two") == CaptionRule("sources", (("web",), ("one", "two")))
    """
    name, colon, names = rule.partition(":")
    lists = [names.split("/") for names in names.split(",")] if name == "sources" else [names.split(",")]
    fields = tuple(tuple(field.strip() for field in fields) for fields in lists) if colon else ()
    known = {"field", "sources", *SENTENCE_RULES} if colon else {*CAPTION_RULES, *SENTENCE_RULES}
    if name not in known or not all(itertools.chain.from_iterable(fields)):
        raise ValueError(f"unknown caption rule {rule!r}; known: {FORM}")
    return CaptionRule(name, fields)


def text_fields(example: Mapping[str, Any]) -> list[str]:
    """Returns the fields of an example that a rule can name."""
    others = (*NO_CAPTIONS, *(("phrases",) if "boxes" in example else ()))
    return [name for name, value in example.items() if name not in others and texts(value)]
