"""Configs that no method can be built of: the message names the field, its value and the way out."""

import pytest
from tiny import check_names, tiny_config

from detailclip_jax import methods

NO_WEIGHT = {f"losses.weights.{name}": 0.0 for name in tiny_config().losses.weights}
ONE_CROP = {"views.crops.large.count": 1, "views.crops.large.blur_p": (0.5,), "views.crops.large.solarize_p": (0.0,)}
BETA, REGION = {"losses.weights.beta": 1.0}, {"losses.weights.region": 1.0}
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
    ("tips", {"masking.strategy": "attention_low"}, ("tips", "masking.strategy", "'random'", "attention_low")),
    ("tipsv2", {"losses.patch_over": "removed"}, ("tipsv2", "losses.patch_over", "'all'", "'removed'")),
    ("siglip2", {"masking.strategy": "attention_low"}, ("siglip2", "masking.strategy", "'random'")),
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
    ("mae", {"losses.weights.token_set": 1.0}, ("losses.weights.token_set", "mae", "0")),
    ("superclip", {"losses.token_ids": (3, 3)}, ("losses.token_ids", "has 3 twice")),
    ("superclip", {"losses.token_ids": (64,)}, ("losses.token_ids", "63")),
    ("superclip", {"data.tokenizer": TOKENIZER}, ("losses.token_ids", TOKENIZER)),
]


@pytest.mark.parametrize(("method", "fields", "words"), REFUSED)
def test_what_does_not_fit_is_refused(method, fields, words):
    config = tiny_config(method if method in methods.METHODS else "detailclip")
    config.update_from_flattened_dict({"method": method, **fields})
    with pytest.raises(ValueError) as refused:
        methods.build(config)
    check_names(refused.value, *words)
