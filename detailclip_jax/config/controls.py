"""Controls: methods with one change, which a comparison trains beside them (`compare --methods=clip_two_views`)."""

from ml_collections import ConfigDict

from detailclip_jax.config.fields import crop


def two_views(config: ConfigDict) -> None:
    """Changes CLIP's config to two unmasked views, as many as DetailCLIP's student has."""
    large = config.views.crops.large
    large.count, large.blur_p, large.solarize_p = 2, (0.1, 0.1), (0.0, 0.0)


def random_mask(config: ConfigDict) -> None:
    """Changes DetailCLIP's config to a random mask, which does not use the teacher's attention; all losses stay."""
    config.masking.strategy = "random"


def full_weight(config: ConfigDict) -> None:
    """Changes MaskCLIP's config to weight 1 for distillation, the same as for the contrastive loss."""
    config.losses.weights.patch = 1.0


def larger_teacher(config: ConfigDict) -> None:
    """Changes DetailCLIP's config so that the teacher gets a crop that encloses both views (paper 4.1.1)."""
    config.views.teacher = "enclosing"
    config.views.crops.enclosing = crop(size=config.model.image_size, kind="enclosing")


CONTROLS = {  # name -> method, change of its config
    "clip_two_views": ("clip", two_views),
    "detailclip_random_mask": ("detailclip", random_mask),
    "detailclip_enclosing": ("detailclip", larger_teacher),
    "maskclip_weight_1": ("maskclip", full_weight),
}
