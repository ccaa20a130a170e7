"""The Gram anchor of DINOv3 as a term of other methods (arXiv 2508.10104): `losses.weights.gram`.

The anchor is a copy of the image encoder, the teacher's if it has one. It is made at the step from which
`losses.ramps.gram` lets the weight rise; until then the weight is 0. A run that resumes with another `total_steps` has
another such step; if it is still to come, the anchor is copied again. The term keeps the similarities between the
patches of the student near those of the anchor: dense features of a long run tend to get worse while its other losses
still fall.

Choices where DINOv3 differs: it makes the copy again three times, ten thousand steps apart, and its anchor reads crops
of twice the size; here it is one copy, and it reads the student's own views, in an unmasked pass. A student that drops
patches is compared at those that it sees.
"""

from ml_collections import ConfigDict

from detailclip_jax.losses.gram import gram_loss
from detailclip_jax.methods import components
from detailclip_jax.methods.method import Context, Forward, Head, Loss, Method
from detailclip_jax.models.networks import Networks
from detailclip_jax.types import Array, Scalar


def gram(method: Method, config: ConfigDict) -> Method:
    """Adds the term for the method's `components.patch_pass`; ValueError for a method without one."""
    name, made = components.patch_pass(method, "gram"), ("gram_student", "gram_anchor")

    def patches(student: Networks, teacher: Networks, record: Forward) -> dict[str, Array]:
        # those that the student sees in this pass, and the anchor's at the same places
        anchor = components.at_seen(record.anchors[name].patches, record, name)
        return {"gram_student": record.tokens[name].patches, "gram_anchor": anchor}

    anchors = {name: method.passes[name].view}
    return method.plus((Head(made, patches),), Loss("gram", made, gram_term), anchors=anchors, anchor_of="gram")


def gram_term(record: Forward, context: Context) -> tuple[Scalar, dict[str, Scalar]]:
    """Computes the Gram loss, a mean over images."""
    return gram_loss(record.heads["gram_student"], record.heads["gram_anchor"]), {}
