"""Configs that no method and no run can be built of: the message names the field, its value and the way out."""

import pytest
from test_distill import RECORD
from tiny import check_names, tiny_config

from detailclip_jax import methods, pretraining

NO_WEIGHT = {f"losses.weights.{name}": 0.0 for name in tiny_config().losses.weights}
ONE_CROP = {"views.crops.large.count": 1, "views.crops.large.blur_p": (0.5,), "views.crops.large.solarize_p": (0.0,)}
BETA, REGION, DISTILL = ({f"losses.weights.{term}": 1.0} for term in ("beta", "region", "distill"))
NEEDS = {  # weight of a term: the field that gives what it reads
    "losses.weights.intra_modal": "data.negatives",
    "losses.weights.negatives": "data.negatives",
    "losses.weights.rank": "data.negatives",
    "losses.weights.region_text": "data.regions",
    "losses.weights.text_contrast": "data.regions",
}
GIVEN = {"data.negatives": 2, "data.regions": 3}
NATIVE = {"views.native": (16, 24), "preprocess.resize": "native"}
DROPOUT = {"views.patch_dropout": 0.5}
ONE_PATCH = {"model.image_size": 8, "views.crops.large.size": 8}
TOKENIZER = "/models/tokenizer.json"


def caption(rule, count=None):
    return {"data.caption": rule, "data.num_captions": count}


REFUSED = [  # method, fields, words
    ("detailklip", {}, ("method", "'detailklip'", *methods.METHODS)),
    ("detailclip", NO_WEIGHT, ("detailclip", "weight 0")),
    # settings that a method would ignore
    ("mae", {"masking.strategy": "attention_low"}, ("masking.strategy", "attention_low", "'random'")),
    ("aclip", {"views.teacher": "same"}, ("views.teacher", "same", "'enclosing'")),
    ("attmask", {"masking.strategy": "random"}, ("masking.strategy", "'random'", "attmask", "attention_hint")),
    ("ibot", {"views.crops.large.mask_grid": 3}, ("mask_grid", "3", "4")),
    ("ibot", {"views.crops.large.mask_ratio": (0.01, 0.05)}, ("mask_ratio", "0.05", "none of 16 patches", "0.062")),
    ("attmask", {"masking.drawn_ratio": (0.01, 0.05)}, ("drawn_ratio", "0.05", "none of 16 patches", "0.062")),
    ("tips", {"masking.strategy": "attention_low"}, ("tips", "masking.strategy", "'random'", "attention_low")),
    ("tipsv2", {"losses.patch_over": "removed"}, ("tipsv2", "losses.patch_over", "'all'", "'removed'")),
    ("siglip2", {"masking.strategy": "attention_low"}, ("siglip2", "masking.strategy", "'random'")),
    # what a method needs
    ("dinotxt", {"model.image_style.pooling": "mean"}, ("'mean'", "'cls'")),
    ("supervised", {"model.num_classes": None}, ("model.num_classes is not set",)),
    ("detailclip", {"views.teacher": "enclosing"}, ("views.crops.enclosing", "kind='enclosing'")),
    ("aclip", {"views.crops.large.flip": 0.5}, ("flip", "views.crops.large", "0")),
    # crops and captions
    ("clip", {"method": "slip"}, ("slip needs the crop 'clean'", "views.crops has only large", "slip.py")),
    ("slip", {"views.crops.large.count": 3}, ("views.crops.large.count", "3", "2")),
    ("slip", {"views.crops.large.count": 1}, ("views.crops.large.count", "1", "two views")),
    ("tips", {"views.crops.large.count": 2}, ("tips", "views.crops.large.count", "2", "set it to 1")),
    ("tips", {"model.class_tokens": 2}, ("tips", "data.caption", "--config.model.class_tokens=1")),
    ("cosmos", ONE_CROP, ("cosmos", "views.crops.large.count is 1", "set it to 2")),
    *(
        ("cosmos", caption(rule), ("cosmos", f"data.caption is {rule!r}", "set it to 'crops'"))
        for rule in ("random", "diverse", "sources:a,b", "field:a")
    ),
    *(
        ("flair", caption(rule, count), ("flair", f"data.caption {rule!r} gives 1"))
        for rule, count in (("random", None), ("sources:a", None), ("diverse", 1))
    ),
    # the first caption of each other image is the negative: with these rules it would always be of the same kind
    *(
        ("flair", caption(rule, count), ("flair", f"data.caption is {rule!r}", "set it to 'diverse'"))
        for rule, count in (("crops", 8), ("sources:raw,long", 2))
    ),
    # terms that do not fit
    ("beta", {**BETA, **caption("random")}, ("data.caption 'random'", "'parts'")),
    ("clip", BETA, ("data.caption 'random'", "'crops'")),  # it has no blank captions
    ("dino", BETA, ("dino", "captions", "losses.weights.beta")),
    ("siglip", {**BETA, **caption("parts", 3)}, ("fills up with blank captions", "set it to 'crops'")),
    ("ibot", {"losses.weights.gram": 2.0}, ("losses.weights.gram", "ibot", "0")),
    ("dino", REGION, ("losses.weights.region", "dino", "captions", "0")),
    ("clip", REGION, ("losses.weights.region", "local", "continue_region.py", "stickers.py:method=clip,region=1", "0")),
    *(
        (method, {f"losses.weights.{term}": 1.0}, (f"losses.weights.{term}", method, "0"))
        for method, term in (("mae", "token_set"), ("dinotxt", "token_set"), ("dinotxt", "gram"))
    ),
    *(("dino", {weight: 1.0, **GIVEN}, (weight, "dino", "captions", "0")) for weight in NEEDS),
    *(("clip", {weight: 1.0}, (weight, field)) for weight, field in NEEDS.items()),
    ("dinotxt", {"losses.weights.region_text": 1.0, **GIVEN}, ("losses.weights.region_text", "dinotxt", "0")),
    ("ibot", {**DISTILL, "distill.record": RECORD}, ("losses.weights.distill", "ibot", "visible", "0")),
    ("clip", {**DISTILL, "distill.record": RECORD, "distill.size": 32}, ("distill.size 32", "6")),
    ("clip", {**DISTILL, "distill.teacher": "runs/teacher"}, ("runs/teacher", "distill.record", "adopt")),
    ("superclip", {"losses.token_ids": (3, 3)}, ("losses.token_ids", "has 3 twice")),
    ("superclip", {"losses.token_ids": (64,)}, ("losses.token_ids", "63")),
    ("superclip", {"data.tokenizer": TOKENIZER}, ("losses.token_ids", TOKENIZER)),
]


OF_A_RUN = [  # method, fields, words
    # images in their own aspect
    ("detailclip", NATIVE, ("views.native (16, 24)", "method detailclip needs squares", "clip or siglip")),
    ("clip", {**NATIVE, "losses.weights.gram": 1.0}, ("views.native", "losses.weights.gram")),
    ("clip", {**NATIVE, "views.patch_dropout": 0.5}, ("views.native", "views.patch_dropout")),
    (
        "clip",
        {**NATIVE, "preprocess.resize": "squash"},
        ("views.native", "'squash'", "--config.preprocess.resize=native"),
    ),
    ("clip", {**NATIVE, "model.image_style.positions": "rotary"}, ("preprocess.resize", "'rotary'", "'squash'")),
    (
        "clip",
        {**NATIVE, "losses.weights.text_contrast": 1.0, "data.regions": 3},
        ("data.regions 3 needs square views",),
    ),
    ("clip", {**NATIVE, "views.native": (0,)}, ("views.native", "at least 1")),
    (
        "clip",
        {**NATIVE, "views.native_budget": 100},
        ("views.native_budget 100", "batch_size 8", "16 patches", "128;"),
    ),
    ("clip", {"views.native_budget": 100, "preprocess.resize": "squash"}, ("set both",)),
    # patch dropout
    *((method, DROPOUT, ("views.patch_dropout 0.5", method, "0")) for method in ("detailclip", "slip", "mae", "silc")),
    ("clip", {"views.patch_dropout": 1.0}, ("views.patch_dropout", "1")),
    ("clip", {"views.patch_dropout": -0.5}, ("views.patch_dropout", "0")),
    ("clip", {**DROPOUT, "views.patch_dropout_until": 1.5}, ("views.patch_dropout_until", "1")),
    ("clip", {"views.patch_dropout_until": 0.9}, ("views.patch_dropout_until 0.9", "views.patch_dropout is 0")),
    ("clip", {**DROPOUT, **ONE_PATCH}, ("views.patch_dropout 0.5", "no unit of a grid of 1")),
]
ROWS = [*((methods.build_networks, *row) for row in REFUSED), *((pretraining.validate, *row) for row in OF_A_RUN)]


@pytest.mark.parametrize(
    ("check", "method", "fields", "words"), ROWS, ids=[f"{method} with {fields}"[:100] for _, method, fields, _ in ROWS]
)
def test_what_does_not_fit_is_refused(check, method, fields, words):
    config = tiny_config(method if method in methods.METHODS else "detailclip")
    config.update_from_flattened_dict({"method": method, **fields})
    with pytest.raises(ValueError) as refused:
        check(config)
    check_names(refused.value, *words)
