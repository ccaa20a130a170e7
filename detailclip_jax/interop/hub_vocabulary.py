"""The vocabulary of a model whose tokenizer is not CLIP's: what exports state of it, and what imports need of it.

The weights of other libraries do not say how texts become token ids. An export states the name, the digest and the end
token of the tokenizer's file in its card or config, and an import asks for that file.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from detailclip_jax.config.fields import AT_EOT
from detailclip_jax.data.tokenizer import PAD
from detailclip_jax.data.vocabularies import CLIP, digest_of, pieces_of, tokenizer_of
from detailclip_jax.runtime import extras
from detailclip_jax.runtime.files import replace_text, written_atomically

KEY = "vocabulary"  # of cards, configs and signature.json
FILES = TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"


def is_own(config: ConfigDict) -> bool:
    """Whether the model's tokenizer is a file."""
    return config.data.tokenizer != CLIP


def end_of(config: ConfigDict) -> int:
    """The id of the end token, at which a text encoder with the pooling "eot" takes its feature.

    Raises FileNotFoundError without the tokenizer's file, ValueError if it is not that of the training.
    """
    if config.model.text_style.end is not None:
        return config.model.text_style.end
    if not is_own(config) or config.model.text_style.pooling != AT_EOT:
        return config.model.vocab_size - 1
    tokenizer_of(config).check()
    return pieces_of(config.data.tokenizer).size - 1


def special_ids(config: ConfigDict) -> dict[str, int | None]:
    """The ids of the start, the end and the padding in the config of a CLIPModel."""
    end = end_of(config)
    if not is_own(config):
        return {"bos_token_id": end - 1, "eos_token_id": end, "pad_token_id": PAD}
    pieces = pieces_of(config.data.tokenizer)
    start = pieces.before[-1] if pieces.before else None
    return {"bos_token_id": start, "eos_token_id": end, "pad_token_id": pieces.padding}


def stated(config: ConfigDict) -> dict[str, Any]:
    """The entry of a card or config: name, digest and end token of the tokenizer's file; {} for CLIP's tokenizer."""
    if not is_own(config):
        return {}
    tokenizer_of(config).check()
    file = config.data.tokenizer
    after = pieces_of(file).after
    end = end_of(config) if config.model.text_style.pooling == AT_EOT else (after[-1] if after else None)
    return {KEY: {"file": Path(file).name, "digest": digest_of(file), "end": end}}


def options(content: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Options of `interop.load` from a card or config: its entry, and the tokenizer's file if it is in the folder."""
    entry = content.get(KEY)
    if entry is None:
        return {}
    file = folder / Path(entry["file"]).name
    is_here = file.is_file() and digest_of(str(file)) == entry["digest"]
    return {KEY: dict(entry)} | ({"tokenizer": str(file)} if is_here else {})


def fits(config: ConfigDict) -> bool:
    """Whether transformers' tokenizer gives the same ids: with other poolings texts are converted to lower case."""
    return is_own(config) and config.model.text_style.pooling == AT_EOT


def write(folder: Path, config: ConfigDict) -> dict[str, Any]:
    """Writes tokenizer.json and tokenizer_config.json for transformers; returns the entry, with the name there."""
    content, entry = Path(config.data.tokenizer).read_bytes(), stated(config)
    special = tokenizer_config(config)
    folder.mkdir(parents=True, exist_ok=True)
    with written_atomically(folder / TOKENIZER) as partial:
        partial.write_bytes(content)
    replace_text(folder / TOKENIZER_CONFIG, json.dumps(special) + "\n")
    return {KEY: entry[KEY] | {"file": TOKENIZER}}


def tokenizer_config(config: ConfigDict) -> dict[str, Any]:
    """tokenizer_config.json: a tokenizer defined by tokenizer.json alone, truncated to the model's context.

    A text is filled with the token of the file, or with the end token if the id that fills it has no text: tokens after
    the first end token are ignored.
    """
    tokenizers = extras.load("tokenizers", "data.tokenizer needs the library tokenizers", package="tokenizers")
    library, pieces = tokenizers.Tokenizer.from_file(config.data.tokenizer), pieces_of(config.data.tokenizer)
    end = library.id_to_token(end_of(config))
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": config.model.context_length,
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
        "eos_token": end,
        "pad_token": library.id_to_token(pieces.padding) or end,
    }
