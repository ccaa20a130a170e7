"""What the captions of a run's data lack, judged by one sample of the examples, which is read before the run."""

import collections
import contextlib
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from detailclip_jax.config.data_path import is_endless
from detailclip_jax.data.caption_selection import (
    SENTENCE_RULES,
    SOURCES,
    captions_of,
    is_blank,
    num_captions,
    parse,
    sentences_for,
    text_fields,
)
from detailclip_jax.data.mixture import members_of
from detailclip_jax.data.sources import BadRecord, Example, Source
from detailclip_jax.data.stickers.scene_source import Stickers
from detailclip_jax.data.tokenizer import Tokenizer
from detailclip_jax.data.vocabularies import tokenizer_of

NUM_SAMPLED = 200  # examples; of several sets, each has its share of the training examples
NUM_OF_SET = 50  # but of each set at least as many
NUM_SCENES = 10  # of stickers, which draw a scene when it is read, and all by the same rules
MUCH_CUT = 0.1  # share of long captions from which a warning is given
LONGEST = 248  # tokens of Long-CLIP's context, the longest that is recommended
MUCH_EQUAL = 0.05  # share of ln(batch size) from which the floor of a contrast is worth a warning
EMPTY = "{empty} of {sampled} sampled examples train with an empty text by data.caption {rule!r}"
LEAVE_OUT = "detailclip_jax.prepare --require-caption, with a new --out, leaves out examples without a caption"


class SetSample(NamedTuple):
    """Readable examples of one set, without their images; the same ones in every run."""

    name: str
    size: int  # of the set
    examples: Sequence[Example]
    num_mixed: int  # the first ones, which are the set's share of NUM_SAMPLED


def sample_of(source: Source) -> list[SetSample]:
    """Reads examples of every set of a source.

    They are drawn: at equal distances they could all have the same caption.
    """
    members, samples = members_of(source), []
    total = sum(member.weight for member in members)
    for member in members:
        num_mixed, examples = round(NUM_SAMPLED * member.weight / total), []
        num = NUM_SCENES if isinstance(member.source, Stickers) else max(num_mixed, NUM_OF_SET)
        size = len(member.source)
        for index in np.random.default_rng(0).choice(size, min(num, size), replace=False).tolist():
            with contextlib.suppress(BadRecord):
                example = member.source[index]
                examples.append({name: example[name] for name in ("captions", *text_fields(example))})
        samples.append(SetSample(member.name, size, examples, num_mixed))
    return samples


def check_some_caption(samples: Sequence[SetSample], rule: str) -> None:
    """Raises ValueError, with the way out, if no sampled example of a set has a caption.

    A caption of a rule with fields is a text in one of them; that each field has texts is checked by
    `source_checks.check_captions`.
    """
    name, lists = parse(rule)
    of_sentences, fields = name in SENTENCE_RULES, list(dict.fromkeys(itertools.chain(*lists))) or ["captions"]

    def has_caption(example: Example) -> bool:
        if of_sentences:
            return bool(sentences_for(example, rule))
        return not all(is_blank(example.get(field)) for field in fields)

    for name_of_set, size, examples, _ in samples:
        if examples and not any(map(has_caption, examples)):
            where = f" in {' or '.join(map(repr, fields))}" if lists else ""
            filled = {field for each in examples for field in text_fields(each) if not is_blank(each[field])}
            others = sorted(filled - {*fields})
            by_name = f"{name if of_sentences else 'field'}:{','.join(others)}"
            raise ValueError(
                f"{name_of_set} has {size:,} examples, and none of {len(examples)} spread over it has a "
                f"caption{where}, which this method trains on; "
                f"{f'take --config.data.caption={by_name}, ' if others else ''}"
                "prepare the set again with --caption-column=NAME (docs/records.md), or choose a method without text, "
                "such as dino or mae"
            )


def warnings_of(samples: Sequence[SetSample], config: ConfigDict, contrast: str = "") -> list[str]:
    """Returns warnings of captions that are cut, equal, or empty.

    `contrast` is the loss term that compares the captions of a batch, "" without one.
    """
    rule, num, lines = config.data.caption, num_captions(config.data), []
    if not is_endless(config.data):
        mixed = [example for sample in samples for example in sample.examples[: sample.num_mixed]]
        rng = np.random.default_rng(0)
        captions = [captions_of(example, rule, rng, num) for example in mixed]
        lines.append(warning_of_long([*itertools.chain(*captions)], tokenizer_of(config, config.data.keep_eot)))
        first = [each for each, *_ in captions]
        if contrast:
            lines.append(warning_of_few(first, config.batch_size, contrast))
        if "" in first and not parse(rule).fields:
            lines.append(f"{EMPTY.format(empty=first.count(''), sampled=len(first), rule=rule)}; {LEAVE_OUT}")
    examples = [example for sample in samples for example in sample.examples]
    lines += [warning_of_empty(examples, rule), warning_of_single_sentences(examples, rule, num)]
    return [line for line in lines if line]


def warning_of_long(captions: Sequence[str], tokenizer: Tokenizer) -> str:
    """Returns a warning if many of the captions are longer than the context, else ""."""
    lengths = np.array([len(tokenizer.encode(caption)) for caption in captions])
    share = float((lengths > tokenizer.context_length).mean()) if len(lengths) else 0.0
    if share < MUCH_CUT:
        return ""
    enough, room = int(np.quantile(lengths, 0.99, method="higher")), tokenizer.context_length
    longer = (
        f"--config.model.context_length={min(enough, LONGEST)} keeps more of them, with a slower step (with "
        "--config.init also --config.init_text_positions=longclip)"
    )
    return (
        f"{share:.1%} of {len(lengths)} sampled captions are longer than model.context_length {room} tokens "
        f"(median length {int(np.median(lengths))}): the rest is cut off and never used.  "
        + (longer if room < LONGEST else "For shorter captions, --config.data.caption=field:NAME selects another text")
    )


def contrast_floor(captions: Sequence[str], batch_size: int) -> float:
    """Returns the lowest value, about, of a softmax over the captions of a batch, from the captions of a sample.

    If k images of a batch have one caption, none of them can be told from the others, and the best value for each is
    ln k.  k is estimated by the share of the other examples of the sample that have the same caption.

    contrast_floor(["a", "a", "b", "b"], 4) == math.log(2);  contrast_floor(["a", "b", "c"], 64) == 0
    """
    others = max(len(captions) - 1, 1)
    counts = collections.Counter(captions).values()
    return sum(n * math.log(1 + (batch_size - 1) * (n - 1) / others) for n in counts) / max(len(captions), 1)


def warning_of_few(captions: Sequence[str], batch_size: int, contrast: str) -> str:
    """Returns a warning if so many captions are equal that the loss `contrast` has a high floor, else ""."""
    floor, chance = contrast_floor(captions, batch_size), math.log(batch_size)
    if floor <= MUCH_EQUAL * chance:
        return ""
    return (
        f"{len(captions)} sampled examples have {len(set(captions))} distinct captions, and a batch has {batch_size} "
        f"examples: images with the same caption cannot be told apart, so the loss {contrast!r} cannot fall below "
        f"about {floor:.2f} (without any learning it is ln({batch_size}) = {chance:.2f}); give captions that say how "
        "the images differ, see docs/troubleshooting.md"
    )


def warning_of_empty(examples: Sequence[Example], rule: str) -> str:
    """Returns a warning if examples lack a text in the fields that the rule names, else ""."""
    lists = parse(rule).fields
    lacking = [each for each in examples if any(all(is_blank(each.get(name)) for name in names) for names in lists)]
    if not lacking:
        return ""
    filled = ({name for name in text_fields(each) if not is_blank(each[name])} for each in lacking)
    way_out, others = "", sorted(set.intersection(*filled))
    if others:
        more = f"{rule},{others[0]}"
        if rule.startswith(SOURCES):  # each of its lists is a caption
            more = SOURCES + ",".join(f"{'/'.join(names)}/{others[0]}" for names in lists)
        way_out = f"; add a field that they have, as in --config.data.caption={more}"
    return EMPTY.format(empty=len(lacking), sampled=len(examples), rule=rule) + way_out


def warning_of_single_sentences(examples: Sequence[Example], rule: str, num: int) -> str:
    """Returns a warning if a rule of `num` captions finds one sentence in most of the examples, else ""."""
    if parse(rule).name not in SENTENCE_RULES:
        return ""
    num_single = sum(len(sentences_for(example, rule)) == 1 for example in examples)
    if 2 * num_single <= len(examples):
        return ""
    return (
        f"the captions of {num_single} of {len(examples)} sampled examples have one sentence: all {num} captions of "
        f"such an image will be the same; data.caption {rule!r} is for captions of several sentences"
    )
