"""MAE: reconstruction of the pixels of dropped patches, without captions (He et al., arXiv 2111.06377)."""

from ml_collections import ConfigDict

from detailclip_jax.config import sizes
from detailclip_jax.methods import components, masking
from detailclip_jax.methods.method import Method, Pass, visible


def mae(config: ConfigDict) -> Method:
    """Builds the method `mae`; `model.image_style` sets the encoder's sin-cos positions and initialisation."""
    losses, views = config.losses, config.views.crops.large.count
    if config.masking.strategy != "random":
        raise ValueError(
            f"method mae has no teacher attention; masking.strategy must be 'random', not {config.masking.strategy!r}"
        )
    patch_size = sizes.size_of(config.model).patch_size
    rule = components.mask_rule(config)
    return Method(
        name="mae",
        mask=components.mask_by(rule, masking.random, views),
        passes={"visible": Pass("large", visible)},
        decode=components.decode("visible"),
        heads=(components.pixel_head("large", patch_size, losses.normalise_pixels, losses.pixel_eps),),
        losses=(components.reconstruction_term(),),
    )
