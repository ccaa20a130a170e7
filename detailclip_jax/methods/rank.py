"""False texts by a margin as a term of other methods: `losses.weights.rank`, `data.negatives` (CE-CLIP, FG-CLIP 2).

The logit of an image's caption is to exceed those of its false ones by a threshold, and with `data.regions` also that
of a region's phrase those of its false ones; the term is the sum of both means. Equation: `losses.rank`. A threshold is
the mean of what the margins were in the step before, over the whole batch: one for each of the K places of a false
caption (a record that lists its false captions by kind has one for each kind) and one for all phrases. They are part
of the training state.

Differences from the published codes: thresholds are those of the global batch, not averaged over devices; they are
saved, while CE-CLIP's start at 0 in each epoch and FG-CLIP 2's when a run is resumed; missing false texts are left out
of the mean, while CE-CLIP counts them as 0; CE-CLIP subtracts the means of true and false logits, of which the first
counts images without false captions, too.
"""

import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from detailclip_jax.losses.clip import l2_normalise
from detailclip_jax.losses.rank import margin_sums, rank_loss, thresholds_of
from detailclip_jax.methods import components
from detailclip_jax.methods.method import Context, Forward, Head, Loss, Method, WholeBatch
from detailclip_jax.methods.negatives import FALSE, check_false, false_head
from detailclip_jax.methods.region_text import PHRASES, POOLED, SCALES, region_heads, regions_of
from detailclip_jax.methods.running_statistics import LATEST, Running
from detailclip_jax.models.networks import Networks
from detailclip_jax.types import Array, Bool, Float, Leaf, Scalar

MADE = MARGINS, SUM = "rank_margins", "rank_sum"
Margins = tuple[Float[Array, "K N"], Bool[Array, "K N"]]  # with which of them are valid


def rank(method: Method, config: ConfigDict) -> Method:
    """Adds the term for the images that captions are compared with, and for the regions of a config that has them.

    Raises ValueError for a method without captions, for a config without false texts, and for one with regions whose
    method replaces patches.
    """
    components.captioned_pass(method, "rank")
    check_false(config, "rank")
    of_regions, passes = region_heads(method, config, "rank") if config.data.regions else ((), method.passes)

    def margins(student: Networks, teacher: Networks, record: Forward) -> dict[str, Leaf]:
        kinds = margins_of(record, config)
        return {MARGINS: kinds, SUM: jnp.concatenate([margin_sums(*each) for each in kinds], 1)}

    after = ("image_embedding", "logit_scale", *FALSE, *((*POOLED, *PHRASES, *SCALES) if config.data.regions else ()))
    heads = false_head(method), *of_regions, Head(MADE, margins, after=after)
    term = Loss("rank", MADE, rank_term, over="batch", running=Running(SUM, LATEST, P()))
    return method.plus(heads, term, passes=passes)


def margins_of(record: Forward, config: ConfigDict) -> list[Margins]:
    """Returns the margins of the captions, each of the K false ones a kind, and those of the phrases, all one kind."""
    captions, heads = components.compared_captions(config), record.heads
    images, texts, false = (
        l2_normalise(x) for x in (heads["image_embedding"], record.text.embedding[:captions], heads[FALSE[0]])
    )
    true = jnp.einsum("vbe,cbe->vcb", images, texts, precision="highest")
    wrong = jnp.einsum("vbe,kbe->kvb", images, false, precision="highest")
    margins = jnp.exp(heads["logit_scale"]) * (true - wrong[:, :, None])
    valid = jnp.broadcast_to((heads[FALSE[1]] > 0)[:, None, None], margins.shape)
    kinds = [(margins.reshape(len(false), -1), valid.reshape(len(false), -1))]
    if config.data.regions:
        pooled, texts, false, valid = regions_of(record).with_false()
        pooled, texts = l2_normalise(pooled[0]), l2_normalise(jnp.concatenate([texts, false]))
        cosines = jnp.einsum("me,kme->km", pooled, texts, precision="highest")
        margins = jnp.exp(heads[SCALES[1]]) * (cosines[:1] - cosines[1:])
        kinds.append((margins.reshape(1, -1), valid.reshape(1, -1)))
    return kinds


def rank_term(record: Forward, context: Context, whole_batch: WholeBatch) -> tuple[Scalar, dict[str, Scalar]]:
    """Computes the sum of the losses of each kind; logs the mean of the thresholds."""
    thresholds, start, loss = thresholds_of(context.running["rank"]), 0, jnp.zeros(())
    for margins, valid in record.heads[MARGINS]:
        loss += rank_loss(margins, valid, thresholds[start : start + len(margins)], whole_batch.axis)
        start += len(margins)
    return loss, {"rank_threshold": thresholds.mean()}
