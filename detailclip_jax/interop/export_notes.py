"""What the user of an exported model must know: networks that a format leaves out, what belongs to the file, README."""

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import jax
from ml_collections import ConfigDict

from detailclip_jax import methods
from detailclip_jax.data.decoding import UPRIGHT
from detailclip_jax.interop import hub_configs, hub_tokenizer, hub_vocabulary, model_sizes
from detailclip_jax.interop.model_to_export import Export
from detailclip_jax.training import dense_encoder

CARD = """---
library_name: transformers
pipeline_tag: zero-shot-image-classification
---
# {name}

A model of detailclip_jax (method {method}; image encoder: {size}; images of {image_size} pixels), for transformers'
{name}:

    import transformers

    model = transformers.AutoModel.from_pretrained(FOLDER)  # a {name}
{usage}
{other}{origins}"""
CARD_PROCESSOR = """    processor = transformers.AutoProcessor.from_pretrained(FOLDER)
    inputs = processor(text=["a frog"], images=[image], padding=True, truncation=True, return_tensors="pt")
    model(**inputs).logits_per_image
"""
CARD_CLIP = """
The tokenizer pads with the end token, detailclip_jax pads with 0: tokens after the first end token are ignored, so
the features are equal. It does not repair wrongly decoded text as ftfy does, and of the HTML entities it replaces only
the most frequent ones.
"""
CARD_OWN = """
The tokenizer is the one that the model was trained with.
"""
CARD_NO_TOKENIZER = """
There is no tokenizer. The model has {vocab_size} token ids; texts must be tokenized and padded as in its training.
"""
CARD_NO_CLIP = """
It is not a `CLIPModel`, whose image encoder has a norm before its blocks and no bias in the patch embedding.
`CLIPModel.from_pretrained` ends with an error about `initializer_factor`, on purpose: otherwise it would leave
the image encoder at random values.
"""


def of_a_run(run: ConfigDict | None) -> list[str]:
    """Returns notes on the image encoder of the run of a dense task: whose it is, and what stays in the run."""
    if run is None:
        return []
    return [
        f"this is the image encoder of a run of {run.method} alone{dense_encoder.whose_weights(run)}",
        "no format has a place for its head, which transfer --predict, "
        f"visualize --what={run.method} and detailclip_jax.load use",
    ]


def origin_lines(origins: Iterable[Mapping[str, str]]) -> list[str]:
    """Returns a text for each published model from which the weights come, see `checkpoint.origins_of`."""
    return [
        f"{origin['name']}{f' ({field})' if (field := origin.get('field')) else ''}, revision {origin['revision']}, "
        f"licence {origin.get('licence', 'unknown')}"
        for origin in origins
    ]


def left_out(networks: Collection[str], export: Export) -> list[str]:
    """Returns notes on what a format has no place for: networks, a score that needs them, decoding as Pillow does."""
    lines = []
    if export.config.preprocess.decoding != UPRIGHT:
        lines.append(
            "images are decoded as Pillow does, which the format does not state: import with --decoding=pillow"
        )
    if missing := sorted(set(export.params) - set(networks)):
        count = sum(leaf.size for leaf in jax.tree.leaves([export.params[name] for name in missing]))
        lines.append(f"left out, no place there: {', '.join(missing)} ({count:,} parameters); --to=safetensors has all")
    if missing and "text" in networks and methods.build(export.config).score:
        method = export.config.method
        lines.append(f"{method} ranks images and texts by its own score, which is left out: cosines rank otherwise")
    return lines


def reference_notes(config: ConfigDict, path: Path) -> list[str]:
    """Returns the notes of `card_notes`, and those on what the reference's layout has no place for."""
    return [
        *card_notes(config, path),
        "the teacher's token embedding, text positions and ln_final have no place there: it has the student's, so the "
        "text features of an import differ from those of the run's ema weights, which --to=slip and safetensors keep",
        "the authors' scripts read it as {'state_dict': {'module.' + key: tensor}} together with their own args",
    ]


def card_notes(config: ConfigDict, path: Path) -> list[str]:
    """Returns the notes on the card that holds the preprocessing, and on a vocabulary of the model's own."""
    card = hub_configs.card_of(path)
    return [
        f"the preprocessing is in {card}; keep it next to the file: "
        "without it import_torch takes the usual one of this format, and the usual numbers of heads",
        *vocabulary_notes(config, card),
    ]


def signature_notes(config: ConfigDict, path: Path) -> list[str]:
    """Returns the note on a vocabulary of the model's own, for a folder with signature.json."""
    is_pair = "text" in methods.build(config).networks
    return vocabulary_notes(config, path / "signature.json") if is_pair else []


def stablehlo_notes(config: ConfigDict, path: Path) -> list[str]:
    """Returns the note on the versions of jax that read the files, and those of `signature_notes`."""
    return [
        f"written by jax {jax.__version__}, as {path / 'signature.json'} says; jax guarantees that versions up to six "
        "months newer, or three weeks older, read the files: keep the checkpoint, to export it again",
        *signature_notes(config, path),
    ]


def vocabulary_notes(config: ConfigDict, stated_in: Path) -> list[str]:
    """Returns the note on a tokenizer that is a file, which the format has no place for."""
    if not hub_vocabulary.is_own(config):
        return []
    return [
        f"texts are tokenized by {config.data.tokenizer}, whose digest is in {stated_in}: give the file with the model"
    ]


def open_clip_notes(config: ConfigDict, path: Path) -> list[str]:
    """Returns notes on the folder of the image encoder's config, and on the tokenizer."""
    lines = []
    if hub_configs.needs_trunk(config):
        lines += [
            f"timm registers no architecture of this size: its config is in {path / hub_configs.TRUNK}, and",
            f"open_clip looks for {hub_configs.TRUNK} in the working directory: load local-dir:. in {path}, or",
            f"set the whole path as timm_model_name in {hub_configs.OPEN_CLIP}",
        ]
    if hub_vocabulary.fits(config):
        return [*lines, f"on the Hub, hf_tokenizer_name in {hub_configs.OPEN_CLIP} must be the name of the repository"]
    return lines if hub_tokenizer.fits(config) else [*lines, no_tokenizer(config)]


def no_tokenizer(config: ConfigDict) -> str:
    """Returns the note on a missing tokenizer."""
    ids = f"the model's {config.model.vocab_size} token ids"
    return f"no tokenizer is written: texts must be tokenized to {ids}, and padded, as in its training"


def huggingface_notes(config: ConfigDict, _: Path) -> list[str]:
    """Returns notes on the class that loads the folder, and on a missing tokenizer."""
    name = hub_configs.transformers_class(config)
    lines = [f"transformers.AutoModel.from_pretrained gives a {name}"]
    if name == "VisionTextDualEncoderModel":
        lines.append(
            "CLIPModel.from_pretrained refuses it: its image encoder has a norm before the blocks, this has not"
        )
    if not hub_tokenizer.fits(config) and not hub_vocabulary.fits(config):
        lines.append(no_tokenizer(config))
    return lines


def timm_notes(config: ConfigDict, path: Path) -> list[str]:
    """Returns notes on the arguments of timm.create_model, a possible confusion, and the file that stores them."""
    card, spec = hub_configs.timm_card(config), model_sizes.spec_of(config.model)
    arguments = ", ".join(f"{name}={value!r}" for name, value in card["create_model"].items())
    other = hub_configs.other_heads(spec)
    return [
        f"timm.create_model({arguments})",
        *([other] if other else []),
        f"that and the preprocessing are in {hub_configs.card_of(path)}; keep it next to the file",
    ]


def readme(config: ConfigDict, origins: Iterable[Mapping[str, str]] = ()) -> str:
    """The README.md of an export for transformers: the class that loads it, how its tokenizer differs, its origins."""
    name, size = hub_configs.transformers_class(config), model_sizes.spec_of(config.model).size
    return CARD.format(
        name=name,
        method=config.method,
        size=f"patch {size.patch_size}, width {size.width}, depth {size.depth}, {size.num_heads} heads",
        image_size=config.model.image_size,
        other=CARD_NO_CLIP if name == "VisionTextDualEncoderModel" else "",
        usage=usage(config),
        origins="".join(f"\nIts weights come from {line}.\n" for line in origin_lines(origins)),
    )


def usage(config: ConfigDict) -> str:
    """How images and texts are prepared, with the tokenizer in the folder if there is one."""
    if hub_tokenizer.fits(config):
        return CARD_PROCESSOR + CARD_CLIP
    if hub_vocabulary.fits(config):
        return CARD_PROCESSOR + CARD_OWN
    return CARD_NO_TOKENIZER.format(vocab_size=config.model.vocab_size)
