"""dino.txt: trains a text encoder and two new blocks on the tokens of a frozen image encoder (arXiv 2412.16334).

    L = InfoNCE([CLS, mean of the patches], text)

The image head (`models.image_blocks`) takes the place of the projection; texts are projected to twice the encoder's
width. The first half of a text is thus trained for the class token, the second half for the patches: words are compared
with patches by that half. `optimizer.frozen = "image"` locks the encoder, as the config has it; what measures the
encoder alone (`segmentation`, `kept_objects`, `knn`, `linear`, `Model.features`) then stays the same in training.
"""

from ml_collections import ConfigDict

from detailclip_jax.methods import components
from detailclip_jax.methods.method import Forward, Head, Method, Pass, fold, full, uses, view_keys
from detailclip_jax.models.heads import Projection
from detailclip_jax.models.image_blocks import BLOCKS, IMAGE_BLOCKS, joined
from detailclip_jax.models.networks import Networks
from detailclip_jax.models.registry import Build, Network
from detailclip_jax.models.text_encoder import TextStyle
from detailclip_jax.types import Array, Batch, Hidden, Texts, Tokens, View


def wide_projection(build: Build) -> Projection:
    """Builds the projection of texts to twice the width of the image encoder."""
    return Projection(2 * build.size.width, build.dtype, TextStyle(**build.model.text_style).projection_bias)


IMAGE_HEAD = {"image_projection": IMAGE_BLOCKS}
TEXT_HEAD = {"text_projection": Network(wide_projection, kind=BLOCKS)}


def dinotxt(config: ConfigDict) -> Method:
    """Builds the method `dinotxt`."""
    return Method(
        name="dinotxt",
        readout="plain",  # the new blocks take patches to the joint space, and the others would read past them
        passes={"full": Pass("large", aligned)},
        encode_text=encode_text,
        heads=(embedding_head("full"),),
        losses=(components.clip_term(),),
    )


@uses("image", **IMAGE_HEAD)
def aligned(student: Networks, view: View, hidden: Hidden | None, keys: Array) -> Tokens:
    """Encodes all patches with the student's encoder and the new blocks."""
    return fold(student.image_projection.aligned, full(student, view, hidden, keys), view_keys(keys, view))


@uses("text", **TEXT_HEAD)
def encode_text(networks: Networks, batch: Batch) -> Texts:
    """Encodes the captions batch["text"] [B, C, T], as `components.encode_text` does."""
    return components.encode_text(networks, batch)


def embedding_head(name: str) -> Head:
    """Joint head of the student's pass `name`, whose tokens are in the joint space, and CLIP's logit scale."""

    @uses("logit_scale")
    def run(student: Networks, teacher: Networks, record: Forward) -> dict[str, Array]:
        return {"image_embedding": joined(record.tokens[name]), "logit_scale": student.logit_scale()}

    return Head(("image_embedding", "logit_scale"), run, passes=(name,))
