"""What a step of a method must compute and move, counted from its config alone: the paper's side of the table.

Each part of the row is counted as this package computes it: heads and pixel head at hidden patches, the decoder's last
block for hidden patches with the mask token's queries, keys and values once per position, the last text block for EOT,
only the CLS row of the teacher's attention beside its tokens.
"""

import itertools
from collections.abc import Mapping
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
from detailclip_jax.methods import components as parts
from detailclip_jax.methods import forward
from detailclip_jax.methods.forward import Method
from detailclip_jax.models import sizes
from detailclip_jax.models.sizes import Size


class Grid(NamedTuple):
    """A crop as the networks see it."""

    views: int
    patches: int  # N


class Case(NamedTuple):
    """What the counts depend on."""

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
    def hidden(self) -> int:
        """H: patches for which heads and decoder compute something."""
        masks, grid, crop = self.config.masking, self.grid("global"), self.config.views.crops["global"]
        if "masked" in self.method.passes:
            ratio = crop.mask_ratio[1] if crop.get("mask_grid", 0) else masks.drawn_ratio[1]
            return int(ratio * grid.patches)
        return parts.mask_rule(self.config).num_removed

    @property
    def prototypes(self) -> int:
        """C."""
        return self.config.model.prototypes or self.size.prototypes

    def has(self, head: str) -> bool:
        """Whether a head of the row makes this entry."""
        return any(head in made.makes for made in self.method.heads)


def components(config: ConfigDict, batch: int, words: int) -> dict[str, Work]:
    """The work per pair of every part of a step but the optimiser, by name."""
    case = Case(config, methods.build(config), sizes.size_of(config.model), batch, words)
    parts = {
        "teacher": total(_teacher(case, view) for view in case.method.targets.values()),
        "student": total(_student(case, p) for p in case.method.passes.values()),
        "decoder": _decoder(case) if "decoder" in case.method.parts else Work(),
        "heads, teacher": _teacher_heads(case),
        "heads, student": _student_heads(case),
        "text": _text(case) if "text" in case.method.parts else Work(),
        "losses": _losses(case),
    }
    return {name: work for name, work in parts.items() if work.flops}


def optimiser(parameters: Mapping[str, int], batch: int) -> Work:
    """AdamW and the teacher's average, from the numbers of parameters that `count_parameters` finds."""
    trained, averaged = parameters["trained"], parameters["ema"]
    operations = ADAMW_OPS * trained + EMA_OPS * averaged
    numbers = (ADAMW_NUMBERS * trained + EMA_NUMBERS * averaged) / batch
    return Work(elementwise=operations / batch, values=numbers)


def encoder(case: Case, grid: Grid, tokens: int, embedded: int, trained: bool) -> Work:
    """A ViT on `tokens` of each view, of which `embedded` are made from pixels."""
    size, style = case.size, case.config.model.image_style
    backward = int(trained and not case.config.model.freeze_patch_embed)
    embed = product(grid.views * embedded, 3 * size.patch_size**2, size.width, backward)
    activation = "gelu" if style.activation == "gelu" else "quick_gelu"
    layer = block(grid.views, tokens, tokens, size.width, size.num_heads, activation, trained)
    return embed + layer * size.depth + pointwise("norm", grid.views * tokens * size.width, trained)


def _teacher(case: Case, view: str) -> Work:
    """Whole views, and the CLS row of every layer."""
    grid, size = case.grid(view), case.size
    row = Work(2 * grid.views * (grid.patches + 1) * size.width)
    return encoder(case, grid, grid.patches + 1, grid.patches, False) + row * size.depth


def _student(case: Case, p: forward.Pass) -> Work:
    """A pass over kept patches, or over all of them."""
    grid = case.grid(p.view)
    seen = grid.patches - case.hidden if p.encode is forward.visible else grid.patches
    return encoder(case, grid, seen + 1, seen, True)


def _decoder(case: Case) -> Work:
    """Embedding and blocks; the first takes hidden patches from a table for all images, the last computes no others."""
    size, (views, patches) = case.size, case.grid("global")
    width, depth = case.config.model.decoder_width or size.width, case.config.model.decoder_depth or size.decoder_depth
    tokens, heads = patches + 1, size.decoder_heads
    seen, read = views * (tokens - case.hidden), case.hidden if depth == 1 else tokens
    embed = product(seen, size.width, width)
    keys = product(seen, width, (2 if depth == 1 else 3) * width) + product(patches / case.batch, width, 3 * width)
    mixed = attention(views, read, tokens, width, heads, True) + product(views * read, width, width)
    first = total((keys, mixed, mlp(views * read, width, "gelu", True)))
    norms = pointwise("norm", (seen + views * read + views * case.hidden) * width, True)
    branches = pointwise("branch", 2 * views * read * width, True)
    middle = block(views, tokens, tokens, width, heads) * max(depth - 2, 0)
    last = block(views, tokens, case.hidden, width, heads) if depth > 1 else Work()
    return total((embed, first, norms, branches, middle, last))


def prototype_mlp(case: Case, rows: Number, trained: bool) -> Work:
    """The head's bottleneck."""
    size, backward = case.size, 2 * trained
    first = product(rows, size.width, size.head_width, backward)
    second = product(rows, size.head_width, size.head_width, backward)
    last = product(rows, size.head_width, size.bottleneck_width, backward)
    return total((first, second, last, pointwise("gelu", 2 * rows * size.head_width, trained)))


def prototypes(case: Case, rows: Number, trained: bool) -> Work:
    """Its logits."""
    return product(rows, case.size.bottleneck_width, case.prototypes, 2 * trained, bias=False)


def _teacher_heads(case: Case) -> Work:
    """CLS tokens; all patches as far as the bottleneck, for the center, and hidden ones to the end; BYOL's target."""
    made, size = Work(), case.size
    if not case.method.targets:
        return made
    grid = case.grid(case.method.targets.get("whole", next(iter(case.method.targets.values()))))
    if case.has("teacher_cls"):
        made += prototype_mlp(case, grid.views, False) + prototypes(case, grid.views, False)
    if case.has("teacher_patches"):
        made += prototype_mlp(case, grid.views * grid.patches, False)
        made += prototypes(case, grid.views * case.hidden, False)
    if case.has("target_byol"):
        made += _mlp_head(grid.views, (size.width, size.ssl_width, size.ssl_output), False)
    return made


def _student_heads(case: Case) -> Work:
    """Everything that is trained on top of the towers, the text's projection included."""
    size, views = case.size, case.grid("global").views
    hidden = views * case.hidden if case.has("student_patches") or case.has("predicted_pixels") else 0
    joint = case.grid(next(iter(case.method.passes.values())).view).views
    cls = sum(case.grid(p.view).views for p in case.method.passes.values())
    head = prototype_mlp(case, cls, True) + prototypes(case, cls, True)
    patches = prototype_mlp(case, hidden, True) + prototypes(case, hidden, True)
    projections = product(joint, size.width, size.joint_width, bias=False)
    projections += product(1, size.text_width, size.joint_width, bias=False)
    width = case.config.model.decoder_width or size.width
    byol = _mlp_head(views, (size.width, size.ssl_width, size.ssl_output), True)
    byol += _mlp_head(views, (size.ssl_output, size.ssl_width, size.ssl_output), True)
    made = {
        "image_embedding": projections,
        "student_cls": head,
        "student_patches": patches,
        "predicted_pixels": product(hidden, width, 3 * size.patch_size**2),
        "ssl": _mlp_head(views, (size.width, size.ssl_width, size.ssl_width, size.ssl_output), True),
        "predicted_byol": byol,
        "class_logits": product(views, size.width, case.config.model.num_classes or 0),
    }
    return total(work for name, work in made.items() if case.has(name))


def _mlp_head(rows: Number, widths: tuple[int, ...], trained: bool) -> Work:
    """Linear layers with BatchNorm between them."""
    layers = (product(rows, inner, outer, 2 * trained) for inner, outer in itertools.pairwise(widths))
    return total(layers) + pointwise("norm", rows * sum(widths[1:-1]), trained)


def _text(case: Case) -> Work:
    """CLIP's tower; its last block computes the EOT token alone."""
    size = case.size
    activation = "gelu" if case.config.model.text_activation == "gelu" else "quick_gelu"
    shape = (size.text_width, size.text_heads, activation)
    whole = block(1, case.words, case.words, *shape)
    return whole * (size.text_depth - 1) + block(1, case.words, 1, *shape)


def _losses(case: Case) -> Work:
    """Logits of the contrastive terms against the global batch, and the distillation's softmax."""
    size, made = case.size, Work()
    terms, grid = case.method.losses, case.grid("global")
    if "clip" in terms:
        views = case.grid(next(iter(case.method.passes.values())).view).views
        made += _contrast(2 * views, case.batch, size.joint_width)
    if "simclr" in terms:
        made += _contrast(4, case.batch, size.ssl_output)
    if "cls" in terms:
        made += pointwise("divergence", 2 * grid.views * case.prototypes, True)
    if "patch" in terms:
        made += pointwise("divergence", grid.views * case.hidden * case.prototypes, True)
    return made


def _contrast(products: int, batch: int, width: int) -> Work:
    """Every embedding against the batch, `products` times; the backward pass makes the logits again."""
    logits = products * batch
    return Work(2 * logits * width, 6 * logits * width, values=4 * products * width) + pointwise(
        "softmax", logits, True
    )


def state_bytes(parameters: Mapping[str, int]) -> dict[str, int]:
    """Bytes of the float32 state: parameters, the teacher's, both moments of AdamW."""
    counts = {"parameters": parameters["all"], "teacher": parameters["ema"], "moments": 2 * parameters["trained"]}
    return {name: 4 * count for name, count in counts.items()}
