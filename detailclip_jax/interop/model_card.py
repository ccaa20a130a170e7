"""The README.md of an export for transformers: which class loads it, and how its tokenizer differs from ours."""

from ml_collections import ConfigDict

from detailclip_jax.interop import hub, hub_tokenizer, hub_vocabulary
from detailclip_jax.interop.measure import spec_of

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
{other}"""
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


def text(config: ConfigDict) -> str:
    """The model card of our model."""
    name, size = hub.transformers_class(config), spec_of(config.model).size
    return CARD.format(
        name=name,
        method=config.method,
        size=f"patch {size.patch_size}, width {size.width}, depth {size.depth}, {size.num_heads} heads",
        image_size=config.model.image_size,
        other=CARD_NO_CLIP if name == "VisionTextDualEncoderModel" else "",
        usage=usage(config),
    )


def usage(config: ConfigDict) -> str:
    """How images and texts are prepared, with the tokenizer in the folder if there is one."""
    if hub_tokenizer.fits(config):
        return CARD_PROCESSOR + CARD_CLIP
    if hub_vocabulary.fits(config):
        return CARD_PROCESSOR + CARD_OWN
    return CARD_NO_TOKENIZER.format(vocab_size=config.model.vocab_size)
