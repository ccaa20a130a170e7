"""The theoretical computation and memory traffic of a method's training step, derived from its config alone.

The counts follow this package's implementation: heads and pixel head compute only hidden patches; the decoder's last
block computes only hidden patches; the mask token's queries, keys and values are computed once per position; the last
text block computes only EOT; of the teacher's attention maps, only the CLS row is computed in addition to its tokens.
"""

import itertools
from collections.abc import Callable, Mapping
from typing import NamedTuple

from ml_collections import ConfigDict

from detailclip_jax import methods
from detailclip_jax.benchmarks.work import (
    ADAMW_NUMBERS,
    ADAMW_OPS,
    EMA_NUMBERS,
    EMA_OPS,
    Number,
    Work,
    attention,
    block,
    mlp,
    pointwise,
    product,
    total,
)
from detailclip_jax.data.caption_rules import NUM_GLOBAL, num_captions
from detailclip_jax.methods.components import encode_text_tokens, mask_rule
from detailclip_jax.methods.method import Method, Pass, no_text, visible
from detailclip_jax.models import cross_pool, sizes
from detailclip_jax.models.sizes import Size


class Grid(NamedTuple):
    """The size of a crop in views and patches."""

    views: int
    patches: int  # N


class Case(NamedTuple):
    """The inputs of the counts."""

    config: ConfigDict
    method: Method
    size: Size
    batch: int  # over all devices
    words: int  # T

    def grid(self, view: str) -> Grid:
        """Views and patches of a crop."""
        crop = self.config.views.crops[view]
        return Grid(crop.get("count", 1), (crop.size // self.size.patch_size) ** 2)

    @property
    def class_tokens(self) -> int:
        """The number of class tokens of the image encoder."""
        return self.config.model.class_tokens

    @property
    def compared(self) -> int:
        """The number of patches of a view in the patch term."""
        return self.grid("large").patches if self.config.losses.patch_over == "all" else self.hidden

    def cls_views(self, head: str) -> int:
        """The number of class tokens of an image that the head with the output `head` computes."""
        passes = next(candidate.passes for candidate in self.method.heads if head in candidate.makes)
        return sum(self.grid(self.method.passes[name].view).views for name in passes)

    @property
    def hidden(self) -> int:
        """H: the number of patches that are hidden from the student."""
        masks, grid, crop = self.config.masking, self.grid("large"), self.config.views.crops.large
        if "masked" in self.method.passes and masks.strategy != "random":
            ratio = crop.mask_ratio[1] if crop.get("mask_grid", 0) else masks.drawn_ratio[1]
            return int(ratio * grid.patches)
        return mask_rule(self.config).num_removed

    @property
    def captions(self) -> int:
        """C: the number of captions of each image."""
        return num_captions(self.config.data)

    @property
    def crops(self) -> int:
        """The number of crops that the student encodes."""
        return sum(self.grid(p.view).views for p in self.method.passes.values())

    @property
    def prototypes(self) -> int:
        """C: the number of prototypes."""
        return sizes.num_prototypes(self.config.model)

    def has(self, head: str) -> bool:
        """Whether a head of the method computes this entry."""
        return any(head in candidate.makes for candidate in self.method.heads)


def components(config: ConfigDict, batch: int, words: int) -> dict[str, Work]:
    """The work per pair of each component of a step except the optimizer, by name.

    Raises ValueError for a method with a head or a loss that is not counted.
    """
    case = Case(config, methods.build(config), sizes.size_of(config.model), batch, words)
    check(case.method)
    parts = {
        "teacher": total((*(_teacher(case, view) for view in case.method.targets.values()), _teacher_text(case))),
        "student": total(_student(case, p) for p in case.method.passes.values()),
        "decoder": _decoder(case) if "decoder" in case.method.networks else Work(),
        "heads, teacher": _teacher_heads(case),
        "heads, student": _student_heads(case),
        "text": _text(case, case.captions, True) if "text" in case.method.networks else Work(),
        "losses": _losses(case),
    }
    return {name: work for name, work in parts.items() if work.flops}


def optimiser(parameters: Mapping[str, int], batch: int) -> Work:
    """The work of AdamW and the teacher's average per pair, from the numbers of `count_parameters`."""
    trained, averaged = parameters["trained"], parameters["ema"]
    operations = ADAMW_OPS * trained + EMA_OPS * averaged
    numbers = (ADAMW_NUMBERS * trained + EMA_NUMBERS * averaged) / batch
    return Work(elementwise=operations / batch, values=numbers)


def encoder(case: Case, grid: Grid, tokens: int, embedded: int, trained: bool) -> Work:
    """The work of a ViT on `tokens` of each view, of which `embedded` are embedded from pixels."""
    size, style = case.size, case.config.model.image_style
    backward = int(trained and not case.config.model.freeze_patch_embed)
    embed = product(grid.views * embedded, 3 * size.patch_size**2, size.width, backward)
    activation = "gelu" if style.activation == "gelu" else "quick_gelu"
    layer = block(grid.views, tokens, tokens, size.width, size.num_heads, activation, trained)
    return embed + layer * size.depth + pointwise("norm", grid.views * tokens * size.width, trained)


def _teacher(case: Case, view: str) -> Work:
    """The work of the teacher on full views, and of the CLS attention row of every layer."""
    grid, size = case.grid(view), case.size
    tokens = grid.patches + case.class_tokens
    row = Work(2 * grid.views * tokens * size.width)
    return encoder(case, grid, tokens, grid.patches, False) + row * size.depth


def _student(case: Case, p: Pass) -> Work:
    """The work of a pass over the kept patches or over all patches."""
    grid = case.grid(p.view)
    seen = grid.patches - case.hidden if p.encode is visible else grid.patches
    return encoder(case, grid, seen + case.class_tokens, seen, True)


def _decoder(case: Case) -> Work:
    """The work of the decoder: embedding and blocks.

    The first block takes the hidden patches from a table shared by all images. The last block computes only hidden
    patches.
    """
    size, (views, patches) = case.size, case.grid("large")
    width, depth = case.config.model.decoder_width or size.width, case.config.model.decoder_depth or size.decoder_depth
    tokens, heads = patches + 1, size.decoder_heads
    seen, queries = views * (tokens - case.hidden), case.hidden if depth == 1 else tokens
    embed = product(seen, size.width, width)
    keys = product(seen, width, (2 if depth == 1 else 3) * width) + product(patches / case.batch, width, 3 * width)
    mixed = attention(views, queries, tokens, width, heads, True) + product(views * queries, width, width)
    first = total((keys, mixed, mlp(views * queries, width, "gelu", True)))
    norms = pointwise("norm", (seen + views * queries + views * case.hidden) * width, True)
    branches = pointwise("branch", 2 * views * queries * width, True)
    middle = block(views, tokens, tokens, width, heads) * max(depth - 2, 0)
    last = block(views, tokens, case.hidden, width, heads) if depth > 1 else Work()
    return total((embed, first, norms, branches, middle, last))


def prototype_mlp(case: Case, rows: Number, trained: bool) -> Work:
    """The work of the prototype head up to its bottleneck."""
    size, backward = case.size, 2 * trained
    first = product(rows, size.width, size.head_width, backward)
    second = product(rows, size.head_width, size.head_width, backward)
    last = product(rows, size.head_width, size.bottleneck_width, backward)
    return total((first, second, last, pointwise("gelu", 2 * rows * size.head_width, trained)))


def prototypes(case: Case, rows: Number, trained: bool) -> Work:
    """The work of the prototype head's logits."""
    return product(rows, case.size.bottleneck_width, case.prototypes, 2 * trained, bias=False)


def _teacher_heads(case: Case) -> Work:
    """The work of the teacher's heads.

    The prototype head computes CLS tokens, all patches up to the bottleneck (for the center), and the logits of hidden
    patches. BYOL's head computes its target, COSMOS's head the embeddings of the views.
    """
    work, size = Work(), case.size
    if not case.method.targets:
        return work
    grid = case.grid(case.method.targets.get("whole", next(iter(case.method.targets.values()))))
    if case.has("teacher_cls"):
        work += prototype_mlp(case, grid.views, False) + prototypes(case, grid.views, False)
    if case.has("teacher_patches"):
        work += prototype_mlp(case, grid.views * grid.patches, False)
        work += prototypes(case, grid.views * case.compared, False)
    if case.has("target_byol"):
        work += _mlp_head(grid.views, (size.width, size.ssl_width, size.ssl_output), False)
    if case.has("teacher_image"):
        work += product(grid.views, size.width, size.joint_width, 0, bias=False)
    return work


def _student_heads(case: Case) -> Work:
    """The work of everything trained on top of the encoders, including the text projection."""
    return total(count(case) for name, count in STUDENT_HEADS.items() if case.has(name))


def _projections(case: Case) -> Work:
    """The work of both projections into the joint space."""
    size, joint = case.size, case.cls_views("image_embedding") * case.class_tokens
    images = product(joint, size.width, size.joint_width, bias=False)
    return images + product(case.captions, size.text_width, size.joint_width, bias=False)


def _cls_prototypes(case: Case) -> Work:
    views = case.cls_views("student_cls")
    return prototype_mlp(case, views, True) + prototypes(case, views, True)


def _patch_prototypes(case: Case) -> Work:
    patches = case.grid("large").views * case.compared
    return prototype_mlp(case, patches, True) + prototypes(case, patches, True)


def _pixels(case: Case) -> Work:
    size, width = case.size, case.config.model.decoder_width or case.size.width
    return product(case.grid("large").views * case.hidden, width, 3 * size.patch_size**2)


def _simclr(case: Case) -> Work:
    size = case.size
    return _mlp_head(case.grid("large").views, (size.width, size.ssl_width, size.ssl_width, size.ssl_output), True)


def _byol(case: Case) -> Work:
    """The work of BYOL's projector and predictor."""
    size, views = case.size, case.grid("large").views
    inputs = size.width, size.ssl_output
    return total(_mlp_head(views, (width, size.ssl_width, size.ssl_output), True) for width in inputs)


def _classes(case: Case) -> Work:
    return product(case.grid("large").views, case.size.width, case.config.model.num_classes or 0)


def _caption_pool(case: Case) -> Work:
    """The work of FLAIR's keys and values, and of its queries."""
    return _patch_pairs(case) * case.grid("large").views + _pool_queries(case, case.captions)


def _cross_features(case: Case) -> Work:
    """The work of COSMOS's cross features: crops over a caption's words, captions over a view's patches."""
    size, patches = case.size, case.grid("large").patches
    projections = product(case.crops, size.width, size.joint_width, bias=False)
    projections += product(case.words, size.text_width, size.joint_width)
    projections += product(patches, size.width, size.joint_width)
    return projections + _pool(case, case.crops, case.words) + _pool(case, case.captions, patches)


def _pool(case: Case, queries: int, keys: int) -> Work:
    """The work of a cross-attention pool."""
    width = case.size.joint_width
    pairs = pointwise("norm", keys * width, True) + product(keys, width, 2 * width)
    return pairs + _pool_queries(case, queries) + _pooling(case, queries, keys)


def _pool_queries(case: Case, queries: int) -> Work:
    width = case.size.joint_width
    return pointwise("norm", queries * width, True) + product(queries, width, width)


def _pooling(case: Case, queries: int, keys: int) -> Work:
    """The work of a pool's attention and output layer."""
    width = case.size.joint_width
    return attention(1, queries, keys, width, cross_pool.NUM_HEADS, True) + product(queries, width, width)


def _patch_pairs(case: Case) -> Work:
    """The work of FLAIR's keys and values of a view: two norms of the projected patches."""
    patches, width = case.grid("large").patches, case.size.joint_width
    projected = product(patches, case.size.width, width, bias=False)
    return projected + pointwise("norm", 2 * patches * width, True) + product(patches, width, 2 * width)


def _mlp_head(rows: Number, widths: tuple[int, ...], trained: bool) -> Work:
    """The work of linear layers with BatchNorm between them."""
    layers = (product(rows, inner, outer, 2 * trained) for inner, outer in itertools.pairwise(widths))
    return total(layers) + pointwise("norm", rows * sum(widths[1:-1]), trained)


def _text(case: Case, captions: int, trained: bool) -> Work:
    """The work of CLIP's text encoder on `captions` of each image.

    Its last block computes only the EOT token, unless the method keeps the student's tokens.
    """
    size = case.size
    activation = "gelu" if case.config.model.text_activation == "gelu" else "quick_gelu"
    shape = (size.text_width, size.text_heads, activation, trained)
    queries = case.words if trained and case.method.encode_text is encode_text_tokens else 1
    last = block(captions, case.words, queries, *shape)
    return block(captions, case.words, case.words, *shape) * (size.text_depth - 1) + last


def _teacher_text(case: Case) -> Work:
    """The work of the teacher on its captions."""
    if case.method.target_text is no_text:
        return Work()
    captions, size = min(case.captions, NUM_GLOBAL), case.size
    return _text(case, captions, False) + product(captions, size.text_width, size.joint_width, 0, bias=False)


STUDENT_HEADS: Mapping[str, Callable[[Case], Work]] = {  # by an output of the head
    "image_embedding": _projections,
    "student_cls": _cls_prototypes,
    "student_patches": _patch_prototypes,
    "predicted_pixels": _pixels,
    "ssl": _simclr,
    "predicted_byol": _byol,
    "class_logits": _classes,
    "image_cross": _cross_features,
    "pool_pairs": _caption_pool,
}
OTHER_HEADS = ("teacher_image", "pool_queries")  # counted with the teacher's heads, and with "pool_pairs"
TERMS = ("clip", "sigmoid", "cross", "flair", "simclr", "cls", "patch")
FREE_TERMS = ("byol", "labels", "reconstruction")  # of little work


def check(method: Method) -> None:
    """Raises ValueError for a head or a loss term of the method that is not counted here."""
    counted = {*STUDENT_HEADS, *OTHER_HEADS}
    heads = [head.makes[0] for head in method.heads if not {*head.makes} & counted]
    terms = [name for name in method.terms if name not in (*TERMS, *FREE_TERMS)]
    if heads or terms:
        raise ValueError(
            f"the work of method {method.name} cannot be counted: benchmarks/theory.py has no count for "
            f"{', '.join([*(f'the head of {name!r}' for name in heads), *(f'the loss {name!r}' for name in terms)])}; "
            "add it there"
        )


def _losses(case: Case) -> Work:
    """The work of the contrastive terms' logits against the global batch, and of the distillation terms' softmax."""
    size, work = case.size, Work()
    terms, grid = case.method.terms, case.grid("large")
    if any(loss.compares and "image_embedding" in loss.reads for loss in terms.values()):
        pairs = case.cls_views("image_embedding") * case.captions  # with class tokens, each caption has its own
        directions = 2 if "clip" in terms else 1  # CLIP's loss normalises over images and over texts
        work += _contrast(directions * pairs, case.batch, size.joint_width)
    if "cross" in terms:
        teachers = grid.views + min(case.captions, NUM_GLOBAL)
        work += _contrast(2 * (case.crops + case.captions) * teachers, case.batch, size.joint_width)
    if "flair" in terms:  # the plain form; in blocks the backward pass pools once more
        pooled, keys = case.batch + case.captions, grid.patches + 1
        cosines = Work(4 * pooled * size.joint_width, 8 * pooled * size.joint_width)
        work += (_pooling(case, pooled, keys) + cosines) * grid.views
    if "simclr" in terms:
        work += _contrast(4, case.batch, size.ssl_output)
    if "cls" in terms:
        work += pointwise("divergence", 2 * grid.views * case.prototypes, True)
    if "patch" in terms:
        work += pointwise("divergence", grid.views * case.compared * case.prototypes, True)
    return work


def _contrast(products: int, batch: int, width: int) -> Work:
    """The work of `products` products of an embedding with the batch.

    It counts the logits a second time in the backward pass, which computes them again where they come in blocks.
    """
    logits = products * batch
    return Work(2 * logits * width, 6 * logits * width, values=4 * products * width) + pointwise(
        "softmax", logits, True
    )


def state_bytes(parameters: Mapping[str, int]) -> dict[str, int]:
    """Bytes of the float32 state: parameters, teacher, both moments of AdamW."""
    counts = {"parameters": parameters["all"], "teacher": parameters["ema"], "moments": 2 * parameters["trained"]}
    return {name: 4 * count for name, count in counts.items()}
