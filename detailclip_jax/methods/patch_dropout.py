"""Patch dropout: the image encoder sees a random part of the patches (FLIP, arXiv 2212.00794): `views.patch_dropout`.

Positions are added first. The class token stays, and int(N (1 - p)) of the N patches, at least one, as in open_clip.
Each view of each image draws its own, without repetition. Evaluation sees all patches. The end of a run does too, after
the share `views.patch_dropout_until` of its steps (FLIP's unmasked tuning): its step is that of the method without
dropout.
"""

import dataclasses

from ml_collections import ConfigDict

from detailclip_jax.config import sizes
from detailclip_jax.methods import components, masking
from detailclip_jax.methods.method import Method, full, visible


def patch_dropout(method: Method, config: ConfigDict) -> Method:
    """Returns the method, whose pass encodes random patches; ValueError for one with other passes than one over all."""
    share, views = config.views.patch_dropout, config.views.crops.large.count
    if method.hides_patches or [(each.view, each.encode) for each in method.passes.values()] != [("large", full)]:
        raise ValueError(
            f"views.patch_dropout {share} is for a method with one pass, over all patches of the large crops, such as "
            f"clip and siglip; method {method.name} has others: set it to 0"
        )
    side = sizes.num_side_patches(config.model)
    rule = masking.RemovalRule(side, share, rounded="kept", field="views.patch_dropout").checked()
    mask = components.mask_by(rule, masking.random, views)
    passes = {name: each._replace(encode=visible) for name, each in method.passes.items()}
    return dataclasses.replace(method, passes=passes, mask=mask)
