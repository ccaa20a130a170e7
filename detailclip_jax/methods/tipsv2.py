"""TIPSv2: TIPS with a patch loss over all patches, and a teacher that averages its head alone (arXiv 2604.12012).

The teacher's encoder is the student's, without gradient; only the prototype head is averaged. `losses.patch_over` must
be "all": the loss runs over all patches, hidden or not, while the student's input is masked as in TIPS.
"""

from ml_collections import ConfigDict

from detailclip_jax.methods.method import Method
from detailclip_jax.methods.tips import variant


def tipsv2(config: ConfigDict) -> Method:
    """Builds the method `tipsv2`; it uses the crops "large" (one) and "local".

    The student is evaluated: the teacher has no encoder of its own.

    Raises ValueError if `losses.patch_over` is not "all".
    """
    if config.losses.patch_over != "all":
        raise ValueError(
            f"method tipsv2 compares all patches; losses.patch_over must be 'all', not {config.losses.patch_over!r}"
        )
    return variant("tipsv2", ("prototype_head",), config)
