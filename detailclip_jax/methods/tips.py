"""TIPS: CLIP, self-distillation of local crops and masked patches; one class token per caption (arXiv 2410.16512).

The authors publish inference code only; the training here follows notes by others on the paper. An image has one or two
captions (its alt-text and a generated one), and each caption is compared with a class token of its own. The contrast
uses the unmasked global crop. The teacher encodes the same crop; the student predicts the teacher's prototypes of the
class token from local crops, and those of patches where a mask token replaces the patch.
"""

from ml_collections import ConfigDict

from detailclip_jax.data.caption_selection import num_captions
from detailclip_jax.methods import components, masking
from detailclip_jax.methods.method import Method, Pass, full, masked


def tips(config: ConfigDict) -> Method:
    """Builds the method `tips`; it uses the crops "large" (one) and "local".

    The student is evaluated: the teacher has no projections, and the student's fit the student's encoder only.
    """
    return variant("tips", ("image", "prototype_head"), config)


def variant(name: str, ema: tuple[str, ...], config: ConfigDict) -> Method:
    """Builds TIPS with a teacher that averages the networks `ema`.

    Raises ValueError for masks other than random ones, several large crops, and different numbers of class tokens and
    captions.
    """
    losses = config.losses
    check(name, config)
    rule = components.mask_rule(config)
    return Method(
        name=name,
        ema=ema,
        targets={"full": "large"},
        mask=components.mask_by(rule, masking.random, 1),
        passes={"full": Pass("large", full), "masked": Pass("large", masked), "local": Pass("local", full)},
        decode=components.tokens_at_hidden("masked"),
        encode_text=components.encode_text,
        heads=(
            components.joint_head("full", class_tokens=config.model.class_tokens),
            components.cls_head(["local"], "full"),
            components.patch_head("full", losses.patch_over, "masked"),
        ),
        losses=(
            components.clip_term(pairs="same"),
            components.cls_term(losses, same_views=False),
            components.patch_term(losses, losses.patch_over),
        ),
        weights="student",
    )


def check(name: str, config: ConfigDict) -> None:
    """Raises ValueError unless masks are random, there is one large crop, and as many class tokens as captions."""
    check_masked_global(name, config)
    captions, tokens = num_captions(config.data), config.model.class_tokens
    if captions != tokens:
        raise ValueError(
            f"method {name} has a class token for each caption, but data.caption {config.data.caption!r} gives "
            f"{captions} and model.class_tokens is {tokens}; give --config.model.class_tokens={captions}, or a "
            "data.caption of as many captions as class tokens, such as sources:NAME,NAME for 2"
        )


def check_masked_global(name: str, config: ConfigDict) -> None:
    """Raises ValueError unless masks are random and there is one large crop."""
    if config.masking.strategy != "random":
        raise ValueError(
            f"method {name} hides random patches; masking.strategy must be 'random', not {config.masking.strategy!r}"
        )
    if config.views.crops.large.count != 1:
        raise ValueError(
            f"method {name} has one global crop, but views.crops.large.count is {config.views.crops.large.count}; set "
            "it to 1, with one number in blur_p and solarize_p"
        )
