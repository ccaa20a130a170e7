"""SigLIP 2: SigLIP with self-distillation of local crops and masked patches at the end of training (arXiv 2502.14786).

The paper adds the two terms after 80 % of training; here that is a second run, which starts from a `siglip` run by
`config.init`. The sigmoid loss takes the image without augmentation. The paper's captioning decoder, whose boxed
phrases come from a detector, is not implemented. One prototype head serves both terms (our choice).
"""

from ml_collections import ConfigDict

from detailclip_jax.methods import components, masking
from detailclip_jax.methods.method import Method, Pass, full, masked
from detailclip_jax.methods.siglip import sigmoid_head, sigmoid_term
from detailclip_jax.methods.tips import check_masked_global


def siglip2(config: ConfigDict) -> Method:
    """Builds the method `siglip2`; it uses the crops "clean" (the whole image), "large" (one) and "local".

    Raises ValueError for masks other than random ones, and for several large crops.
    """
    check_masked_global("siglip2", config)
    losses, rule = config.losses, components.mask_rule(config)
    return Method(
        name="siglip2",
        ema=("image", "prototype_head"),
        targets={"full": "large"},
        mask=components.mask_by(rule, masking.random, 1),
        passes={"clean": Pass("clean", full), "masked": Pass("large", masked), "local": Pass("local", full)},
        decode=components.tokens_at_hidden("masked"),
        encode_text=components.encode_text,
        heads=(
            sigmoid_head("clean"),
            components.cls_head(["local"], "full"),
            components.patch_head("full", losses.patch_over, "masked"),
        ),
        losses=(
            sigmoid_term(),
            components.cls_term(losses, same_views=False),
            components.patch_term(losses, losses.patch_over),
        ),
        weights="student",  # the teacher has no projections: its encoder is older than those of the student
        continues="siglip",
    )
