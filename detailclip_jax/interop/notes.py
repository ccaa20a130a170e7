"""What the user of an exported model must know: networks that a format leaves out, and what belongs to the file."""

from pathlib import Path

import jax
from ml_collections import ConfigDict

from detailclip_jax import methods
from detailclip_jax.interop import formats, hub, hub_tokenizer, hub_vocabulary, measure
from detailclip_jax.interop.exported_model import Export
from detailclip_jax.interop.formats import Format
from detailclip_jax.training import dense_encoder


def notes(name: str, export: Export, path: Path) -> list[str]:
    """Returns all notes on a model that was written in the format `name`."""
    return [*of_a_run(export.run), *left_out(formats.FORMATS[name], export), *of_format(name, export, path)]


def of_a_run(run: ConfigDict | None) -> list[str]:
    """Returns notes on the image encoder of the run of a dense task: whose it is, and what stays in the run."""
    if run is None:
        return []
    return [
        f"this is the image encoder of a run of {run.method} alone{dense_encoder.whose_weights(run)}",
        "no format has a place for its head, which transfer --predict, "
        f"visualize --what={run.method} and detailclip_jax.load use",
    ]


def left_out(fmt: Format, export: Export) -> list[str]:
    """Returns notes on the networks that a format leaves out, and on a score that needs more than the encoders."""
    if fmt.networks is None:
        return []
    places, lines = fmt.networks(export.config), []
    if missing := sorted(set(export.params) - set(places)):
        count = sum(leaf.size for leaf in jax.tree.leaves([export.params[name] for name in missing]))
        lines.append(f"left out, no place there: {', '.join(missing)} ({count:,} parameters); --to=safetensors has all")
    if missing and "text" in places and methods.build(export.config).score:
        method = export.config.method
        lines.append(f"{method} ranks images and texts by its own score, which is left out: cosines rank otherwise")
    return lines


def of_format(name: str, export: Export, path: Path) -> list[str]:
    """Returns notes on how the written model is read, and on what belongs to it."""
    config = export.config
    if name in ("slip", "cosmos", "flair"):
        return card_notes(config, path)
    if name == "reference":
        return [
            *card_notes(config, path),
            "the teacher's token embedding, text positions and ln_final have no place there: it has the student's",
            "an import's text features, and what is evaluated with them, differ from the run's ema weights by what the "
            f'row "{formats.TEACHER_TEXT}" of the comparison says; --to=slip and safetensors keep the ema weights',
            "the authors' scripts read it as {'state_dict': {'module.' + key: tensor}} together with their own args",
        ]
    if name == "timm":
        return timm_notes(config, path)
    if name == "huggingface":
        return huggingface_notes(config)
    if name == "open_clip":
        return open_clip_notes(config, path)
    if name in ("stablehlo", "onnx") and "text" in export.params:
        return vocabulary_notes(config, path / "signature.json")
    return []


def card_notes(config: ConfigDict, path: Path) -> list[str]:
    """Returns the notes on the card that holds the preprocessing, and on a vocabulary of the model's own."""
    card = hub.card_of(path)
    return [
        f"the preprocessing is in {card}; keep it next to the file: "
        "without it import_torch takes the usual one of this format, and the usual numbers of heads",
        *vocabulary_notes(config, card),
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
    if hub.needs_trunk(config):
        lines += [
            f"timm registers no architecture of this size: its config is in {path / hub.TRUNK}, and open_clip looks",
            f"for {hub.TRUNK} in the working directory: load local-dir:. in {path}, or set the whole path as",
            f"timm_model_name in {hub.OPEN_CLIP}",
        ]
    if hub_vocabulary.fits(config):
        return [*lines, f"on the Hub, hf_tokenizer_name in {hub.OPEN_CLIP} must be the name of the repository"]
    return lines if hub_tokenizer.fits(config) else [*lines, no_tokenizer(config)]


def no_tokenizer(config: ConfigDict) -> str:
    """Returns the note on a missing tokenizer."""
    ids = f"the model's {config.model.vocab_size} token ids"
    return f"no tokenizer is written: texts must be tokenized to {ids}, and padded, as in its training"


def huggingface_notes(config: ConfigDict) -> list[str]:
    """Returns notes on the class that loads the folder, and on a missing tokenizer."""
    name = hub.transformers_class(config)
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
    card, spec = hub.timm_card(config), measure.spec_of(config.model)
    arguments = ", ".join(f"{name}={value!r}" for name, value in card["create_model"].items())
    other = hub.other_heads(spec)
    return [
        f"timm.create_model({arguments})",
        *([other] if other else []),
        f"that and the preprocessing are in {hub.card_of(path)}; keep it next to the file",
    ]
