"""Writes our tokenizer as files for transformers and the tokenizers library, without using either.

`tokenizer.json` holds the vocabulary, the merges and those steps of `data.tokenizer.clean` that replace characters. Two
steps have no counterpart there: ftfy's repair of wrongly decoded text, and HTML entities except for the most frequent
ones. Captions that need these steps get different ids.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ftfy import chardata
from ml_collections import ConfigDict

from detailclip_jax.data import tokenizer
from detailclip_jax.data.vocabularies import CLIP
from detailclip_jax.models.text_encoder import TextStyle
from detailclip_jax.runtime.files import replace_text

START, END = tokenizer.SPECIAL  # the texts of both tokens
WORDS = tokenizer.WORDS.pattern
FILES = ("tokenizer.json", "vocab.json", "tokenizer_config.json", "special_tokens_map.json", "merges.txt")
ENTITIES = {"&lt;": "<", "&gt;": ">", "&quot;": '"', "&#39;": "'", "&apos;": "'", "&nbsp;": " ", "&amp;": "&"}
CONTROLS = r"[\x00-\x08\x0b\x0e-\x1f\x7f\x{206a}-\x{206f}\x{feff}\x{fff9}-\x{fffb}]"  # characters that ftfy removes
FINAL_SIGMA = r"(?<=\p{L})\x{03a3}(?!\p{L})"  # Python's lower() maps it to another letter at the end of a word


def fits(config: ConfigDict) -> bool:
    """Whether the model's vocabulary is our tokenizer's, and padding has no effect in its text encoder."""
    is_clips = config.data.tokenizer == CLIP and config.model.vocab_size == tokenizer.VOCAB_SIZE
    return is_clips and TextStyle(**config.model.text_style).trims


def write(folder: Path, config: ConfigDict) -> None:
    """Writes tokenizer.json, vocab.json, merges.txt, tokenizer_config.json and special_tokens_map.json."""
    vocabulary, merges = tokenizer.vocabulary(), tokenizer.merges()
    folder.mkdir(parents=True, exist_ok=True)
    contents = {
        "tokenizer.json": tokenizer_json(vocabulary, merges),
        "vocab.json": vocabulary,
        "tokenizer_config.json": tokenizer_config(config),
        "special_tokens_map.json": special_tokens(),
    }
    for name, content in contents.items():
        replace_text(folder / name, json.dumps(content, ensure_ascii=True) + "\n")
    replace_text(folder / "merges.txt", "\n".join(["#version: 0.2", *map(" ".join, merges)]) + "\n")


def special_tokens() -> dict[str, str]:
    """The special tokens of transformers. Padding uses the end token, since tokens after the first one are ignored."""
    return {"bos_token": START, "eos_token": END, "pad_token": END, "unk_token": END}


def tokenizer_config(config: ConfigDict) -> dict[str, Any]:
    """tokenizer_config.json: a tokenizer defined by tokenizer.json alone, truncated to the model's context."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": config.model.context_length,
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
        **special_tokens(),
    }


def tokenizer_json(vocabulary: dict[str, int], merges: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """tokenizer.json: normalisation, split into words, byte-level BPE, start and end tokens."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    words = {"type": "Split", "pattern": {"Regex": WORDS}, "behavior": "Removed", "invert": True}
    around = {"type": "RobertaProcessing", "trim_offsets": False, "add_prefix_space": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": token, "content": text, **flags} for text, token in tokenizer.SPECIAL.items()],
        "normalizer": {"type": "Sequence", "normalizers": normalizers()},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [words, byte_level]},
        "post_processor": around | {"sep": [END, tokenizer.EOT], "cls": [START, tokenizer.SOT]},
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": tokenizer.WORD_END}, "content": " "},
                byte_level,
                {"type": "Strip", "content": " ", "start": 0, "stop": 1},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": END,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": tokenizer.WORD_END,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocabulary,
            "merges": [list(pair) for pair in merges],
        },
    }


def normalizers() -> list[dict[str, Any]]:
    """The steps of `data.tokenizer.clean` that replace characters, in its order."""
    unescaped = [_replaced(name, character) for name, character in ENTITIES.items()]
    tables = (chardata.LIGATURES, chardata.WIDTH_MAP)
    return [
        *unescaped,
        *(_replaced(chr(code), text) for table in tables for code, text in table.items()),
        _replaced(chardata.SINGLE_QUOTE_RE.pattern, "'", "Regex"),
        _replaced(chardata.DOUBLE_QUOTE_RE.pattern, '"', "Regex"),
        _replaced(CONTROLS, "", "Regex"),
        {"type": "NFC"},
        *unescaped,
        _replaced(r"\s+", " ", "Regex"),
        _replaced(FINAL_SIGMA, "\u03c2", "Regex"),
        {"type": "Lowercase"},
    ]


def _replaced(pattern: str, content: str, kind: str = "String") -> dict[str, Any]:
    return {"type": "Replace", "pattern": {kind: pattern}, "content": content}
