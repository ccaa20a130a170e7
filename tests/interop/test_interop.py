"""Tables and conversion: bit-exact both ways at every size, what is refused, and equality with other libraries."""

import argparse
import contextlib
import functools
import pathlib
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from detailclip_jax import config as config_lib
from detailclip_jax import interop
from detailclip_jax.config.sizes import SIZES, Size
from detailclip_jax.interop import (
    clip_names,
    key_tables,
    model_sizes,
    own_safetensors,
    pe_names,
    state_dicts,
    tips_names,
)
from detailclip_jax.interop.layouts import LAYOUTS
from detailclip_jax.interop.timm_names import OPENAI_STYLE
from detailclip_jax.methods.encode import encoders
from detailclip_jax.models import stacking
from detailclip_jax.models.cross_pool import NUM_HEADS
from detailclip_jax.models.vit import Style
from detailclip_jax.training import experiment, mesh

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
SMALL = Size(8, 48, 2, 4, 32, 2, 4, 24, 1, 4, 40, 16, 32, 36, 20)
IMAGE_SIZE, CONTEXT, VOCABULARY = 32, 12, 64
WRITTEN = [layout for layout in LAYOUTS if not layout.read_only]


@functools.cache
def golden(name):
    with np.load(GOLDEN / f"{name}.npz") as file:
        arrays = dict(file)
    return arrays, {key.removeprefix("sd/"): value for key, value in arrays.items() if key.startswith("sd/")}


def spec_for(layout, size=SMALL):
    size = fitting(layout, size)
    text = layout.text_activation, layout.text_style, layout.image_is_embedding
    side = 4 if layout.tower.positions else model_sizes.ROTARY_SIDE
    return model_sizes.Spec(
        size, size.patch_size * side, CONTEXT, VOCABULARY, layout.style, *text, class_tokens=layout.class_tokens
    )


def fitting(layout, size):
    """The size, with the image encoder's width as the joint one if the layout has no image projection.

    Widths of heads that the layout lacks are those that reading assumes: both have the same shapes, traced once.
    """
    prototypes, ssl = ("head_width", "bottleneck_width", "prototypes"), ("ssl_width", "ssl_output")
    lacking = {"detailclip": ssl, "aclip": prototypes, "slip": prototypes}.get(layout.method, prototypes + ssl)
    size = size._replace(**{name: getattr(SIZES["tiny"], name) for name in lacking})
    if layout.image_is_embedding:
        return size._replace(joint_width=size.width)
    in_heads = NUM_HEADS * max(size.joint_width // NUM_HEADS, 1)  # of the cross-attention pools
    return size._replace(joint_width=in_heads) if layout.method in ("cosmos", "flair") else size


def abstract(layout, spec):
    """Shapes of the variables of a model in a layout, nothing computed."""
    config = state_dicts.config_of(layout, spec, {})
    return config, experiment.weight_shapes(config)


def filled(shapes, seed=0, make=None):
    """Numbers for a tree of shapes; a zero-strided blank where only the shapes matter."""
    rng = np.random.default_rng(seed)
    make = make or (lambda shape: rng.random(shape, np.float32) - np.float32(0.5))
    return jax.tree.map(lambda leaf: make(leaf.shape), shapes)


def written(layout, size=SMALL, seed=0):
    """A state dict of noise in a layout, and the config of its model."""
    state_dict, config = _written(LAYOUTS.index(layout), size, seed)
    return dict(state_dict), config


@functools.cache
def _written(index, size, seed):
    layout = LAYOUTS[index]
    spec = spec_for(layout, size)
    config, shapes = abstract(layout, spec)
    table = layout.table(spec)
    state_dict = {}
    for number, (name, entries) in enumerate(table.trees().items()):
        state_dict = key_tables.write(entries, filled(getattr(shapes, name), seed + number)) | state_dict
    copies = {copy: state_dict[original] for copy, original in {**table.copies, **table.echoes}.items()}
    return state_dict | copies | dict(table.constants) | dict(table.counters), config


def told(layout, size=SMALL):
    """What cannot be inferred from the tensors."""
    heads = {"num_heads": size.num_heads} | ({"text_heads": size.text_heads} if layout.text else {})
    return heads | dict.fromkeys(layout.needs, "quick_gelu")


def names(layouts):
    return [f"{layout.name}-{layout.table.__name__}-{i}" for i, layout in enumerate(layouts)]


@pytest.mark.parametrize("layout", WRITTEN, ids=names(WRITTEN))
def test_there_and_back_is_bit_exact(layout):
    state_dict, config = written(layout)
    _, variables, read_config = interop.load(state_dict, layout.name, **told(layout))
    back = interop.to_state_dict(variables, read_config, layout.name)
    assert set(back) == set(state_dict)
    for key, value in state_dict.items():
        np.testing.assert_array_equal(back[key], value, err_msg=key)
        assert back[key].dtype == value.dtype, key
    assert read_config.method == layout.method
    assert read_config.model.image_size == config.model.image_size
    assert read_config.model.image_style.to_dict() == config.model.image_style.to_dict()
    size = model_sizes.size_of(read_config.model)
    assert size[:4] == SMALL[:4] and (layout.text is None or size[:8] == fitting(layout, SMALL)[:8])


def kinds():
    """One of the layouts that share networks and table with others."""
    return list({(row.method, row.table, row.style): row for row in reversed(WRITTEN)}.values())


LARGER = [pytest.param(name, marks=pytest.mark.slow) for name in ("S/16", "B/16", "L/16")]


@pytest.mark.check
@pytest.mark.parametrize("name", ["tiny", *(pytest.param(name, marks=pytest.mark.slow) for name in ("S/16", "B/16"))])
@pytest.mark.parametrize("layout", kinds(), ids=names(kinds()))
def test_there_and_back_is_bit_exact_at_full_width(layout, name):
    """One block of the real widths: more of them repeat the same rows."""
    size = SIZES[name]._replace(depth=1, text_depth=1, prototypes=64, ssl_width=64)
    state_dict, _ = written(layout, size)
    _, variables, config = interop.load(state_dict, layout.name, **told(layout, size))
    back = interop.to_state_dict(variables, config, layout.name)
    assert set(back) == set(state_dict)
    assert all(np.array_equal(back[key], value) for key, value in state_dict.items())


@functools.cache
def abstract_at(size, method, style, class_tokens=1):
    """Shapes of the variables of a method's networks at a size: the same for all layouts of that kind."""
    kind = method, style, class_tokens
    layout = next(row for row in LAYOUTS if (row.method, row.style, row.class_tokens) == kind)
    return abstract(layout, spec_for(layout, shallow(size)))[1]


def shallow(name):
    """The size with two blocks a tower: more of them repeat the same rows, and `test_keys_of_the_reference` has all."""
    return SIZES[name]._replace(depth=2, text_depth=2)


@pytest.mark.parametrize("name", ["tiny", *LARGER])
def test_every_tensor_of_ours_has_one_place_at_every_size(name):
    """Abstractly: shapes go there and come back, and nothing of ours is left out or written twice."""
    for layout in LAYOUTS:
        shapes = abstract_at(name, layout.method, layout.style, layout.class_tokens)
        table = layout.table(spec_for(layout, shallow(name)))
        for tree, entries in table.trees().items():
            ours = getattr(shapes, tree)
            blank = filled(ours, make=lambda shape: np.broadcast_to(np.float32(0), shape))
            there = key_tables.write(entries, blank)
            assert len(there) == len(entries)
            back = {k: v.shape for k, v in key_tables.flatten(key_tables.read(entries, there)).items()}
            if tree == "params":
                back |= {path: value.shape for path, value in table.fixed.items()}
            assert back == {k: v.shape for k, v in key_tables.flatten(ours).items()}, layout.name
            assert {k: v.shape for k, v in there.items()} == key_tables.shapes(entries, back)


def test_keys_of_the_reference():
    """tests/golden/vitb16_keys.tsv: names and shapes of the 637 tensors of the authors' ViT-B/16."""
    rows = (line.split("\t") for line in (GOLDEN / "vitb16_keys.tsv").read_text().splitlines()[1:])
    theirs = {row[0]: tuple(int(number) for number in row[1].strip("()").split(",") if number.strip()) for row in rows}
    layout = LAYOUTS[0]
    spec = model_sizes.Spec(SIZES["B/16"], 224, 77, 49408)
    assert state_dicts.expected_shapes(layout.table(spec), abstract(layout, spec)[1]) == theirs
    assert len(theirs) == 637


@pytest.mark.parametrize(
    ("name", "layout"), [("tiny_detailclip", "reference"), ("tiny_clip", "clip"), ("tiny_slip", "slip")]
)
def test_state_dicts_of_the_authors_code_come_back_bit_equal(name, layout):
    _, state_dict = golden(name)
    wrapped = {"epoch": 3, "state_dict": {f"module.{key}": value for key, value in state_dict.items()}}
    _, variables, config = interop.load(wrapped)
    back = interop.to_state_dict(variables, config, layout)
    assert set(back) == set(state_dict)
    for key in state_dict.keys() - {"image_mlp.bn1.num_batches_tracked", "image_mlp.bn2.num_batches_tracked"}:
        np.testing.assert_array_equal(back[key], state_dict[key], err_msg=key)


def test_forward_of_the_authors_clip():
    """tests/golden/tiny_clip.npz, `eval/`: embeddings in evaluation mode."""
    arrays, state_dict = golden("tiny_clip")
    model, variables, config = interop.load(state_dict)
    encode = encoders(model, config)
    image = encode.image(variables["params"], np.moveaxis(arrays["in/image_u8"], 1, -1))
    text = encode.text(variables["params"], arrays["in/text"])
    for ours, theirs in ((image, arrays["eval/image"]), (text, arrays["eval/text"])):
        theirs = theirs / np.linalg.norm(theirs, axis=-1, keepdims=True)
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())


def test_forward_of_the_authors_detailclip():
    """tests/golden/tiny_detailclip.npz; its images go through masks and the moved teacher, see test_golden.py."""
    arrays, state_dict = golden("tiny_detailclip")
    model, variables, _ = interop.load(state_dict)
    embed_text = jax.jit(functools.partial(model.apply, method="embed_text"))
    text = embed_text({"params": variables["params"]}, jnp.asarray(arrays["in/text"]))
    theirs = arrays["out/text_embed"]
    np.testing.assert_allclose(text, theirs, atol=1e-5 * np.abs(theirs).max())


@pytest.mark.check
@pytest.mark.parametrize("seed", range(len(WRITTEN)))
def test_any_sizes_are_read_from_the_shapes(seed):
    """Every layout at sizes that nobody chose."""
    rng, layout = np.random.default_rng(seed), WRITTEN[seed]
    heads, text_heads = (int(n) for n in rng.integers(1, 4, 2))
    size = Size(
        patch_size=int(rng.choice([4, 8, 14])),
        width=4 * heads * int(rng.integers(2, 5)),
        depth=int(rng.integers(1, 4)),
        num_heads=heads,
        text_width=4 * text_heads * int(rng.integers(1, 4)),
        text_depth=int(rng.integers(1, 4)),
        text_heads=text_heads,
        joint_width=int(rng.integers(4, 24)),
        decoder_depth=int(rng.integers(1, 3)),
        decoder_heads=4,
        head_width=int(rng.integers(8, 24)),
        bottleneck_width=int(rng.integers(4, 12)),
        prototypes=int(rng.integers(8, 24)),
        ssl_width=8,
        ssl_output=4,
    )
    state_dict, _ = written(layout, size, seed)
    _, variables, config = interop.load(state_dict, layout.name, **told(layout, size))
    back = interop.to_state_dict(variables, config, layout.name)
    assert all(np.array_equal(back[key], value) for key, value in state_dict.items())
    found = model_sizes.spec_of(config.model)
    side = 14 if config.model.image_style.positions == "rotary" else 4  # no tensor shows the size: it is DINOv3's
    assert found.size[:4] == size[:4] and found.image_size == side * size.patch_size
    assert layout.text is None or (found.size[:8], found.context_length, found.vocab_size) == (
        fitting(layout, size)[:8],
        CONTEXT,
        VOCABULARY,
    )


def test_a_state_dict_makes_the_first_state_of_a_run():
    layout = LAYOUTS[0]
    _, variables, config = interop.load(written(layout)[0], **told(layout))
    config.total_steps, config.batch_size, config.model.scan = 10, 8, True
    built = experiment.build(config, mesh.make_mesh(jax.devices()[:1]))
    state = built.state(variables["params"], variables["ema_params"])
    for found, expected in ((state.params, variables["params"]), (state.ema_params, variables["ema_params"])):
        assert {*found} == {*expected}
        jax.tree.map(np.testing.assert_array_equal, stacking.unstack(jax.device_get(found)), jax.device_get(expected))


def test_stacked_parameters_are_written_like_numbered_ones():
    layout = LAYOUTS[0]
    state_dict, _ = written(layout)
    _, variables, config = interop.load(state_dict, **told(layout))
    config.model.scan = True
    shapes = experiment.weight_shapes(config)
    stacked = {name: stacking.like(tree, getattr(shapes, name)) for name, tree in variables.items()}
    assert stacked["params"]["image"]["blocks"]["norm1"]["scale"].shape == (SMALL.depth, SMALL.width)
    back = interop.to_state_dict(stacked, config, "reference")
    assert all(np.array_equal(back[key], value) for key, value in state_dict.items())


@pytest.mark.parametrize("layout", LAYOUTS, ids=names(LAYOUTS))
def test_the_layout_is_told_by_the_names(layout):
    state_dict, _ = written(layout)
    extra = {mark: np.zeros(1, np.float32) for mark in layout.marks if mark not in state_dict}

    state_dict |= extra
    same = [row.name for row in LAYOUTS if row.fits(state_dict) and row.counts_registers(state_dict)]
    assert layout.name in same
    assert state_dicts.choose(state_dict, None)[0].name == same[0]
    assert state_dicts.choose(state_dict, layout.name)[0].name == layout.name


def refused(state_dict, match, **options):
    with pytest.raises(ValueError, match=match):
        interop.load(state_dict, **heads(), **options)


def heads():
    return {"num_heads": SMALL.num_heads, "text_heads": SMALL.text_heads}


@pytest.mark.check
@pytest.mark.parametrize("name", state_dicts.NAMES)
def test_the_weights_of_another_layout_are_refused_with_a_message(name):
    """Or read, where one layout has all tensors of the other."""
    for layout in WRITTEN:
        with contextlib.suppress(ValueError):
            interop.load(written(layout)[0], name, **heads())


@functools.cache
def clip_state_dict():
    return written(next(row for row in LAYOUTS if row.name == "clip"))[0]


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16, np.float64])
def test_other_floats_become_float32(dtype, caplog):
    state_dict = {key: value.astype(dtype) for key, value in clip_state_dict().items()}
    _, variables, _ = interop.load(state_dict, **heads())
    ours = np.asarray(variables["params"]["text"]["ln_final"]["scale"])
    np.testing.assert_array_equal(ours, state_dict["ln_final.weight"].astype(np.float32))
    assert ours.dtype == np.float32 and "converted to float32" in caplog.text


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16])
def test_fixed_positions_may_differ_by_the_rounding_of_their_precision(dtype):
    state_dict = {key: value.astype(dtype) for key, value in reference_state_dict().items()}
    table = LAYOUTS[0].table(spec_for(LAYOUTS[0]))
    state_dicts._check_known(table, state_dict)
    wrong = state_dict["decoder_pos_embed"] * dtype(0.9)
    with pytest.raises(ValueError, match="decoder_pos_embed differs from its only supported value"):
        state_dicts._check_known(table, {**state_dict, "decoder_pos_embed": wrong})


def test_heads_that_the_tensors_do_not_show():
    assert [model_sizes.heads_of(width, None, "num_heads") for width in (384, 768, 1024)] == [6, 12, 16]


def test_slip_s_small_vit_has_twelve_heads_and_timm_s_six():
    size = SIZES["S/16"]._replace(depth=1, text_depth=1)
    for name, num_heads, given in (("clip", 12, {"text_heads": 8}), ("timm", 6, {"activation": "gelu"})):
        state_dict, _ = written(next(row for row in WRITTEN if row.name == name), size)
        _, _, config = interop.load(state_dict, name, **given)
        assert model_sizes.size_of(config.model).num_heads == num_heads


def test_activations_that_no_shape_tells():
    layout = clip_names.OPEN_CLIP
    state_dict, _ = written(layout)
    refused(state_dict, "activation of this open_clip model cannot be inferred from the tensors")
    _, _, config = interop.load(state_dict, **heads(), activation="gelu")
    assert (config.model.image_style.activation, config.model.text_activation) == ("gelu", "gelu")


@pytest.mark.parametrize("layout", [row for row in LAYOUTS if row.needs], ids=lambda row: row.table.__name__)
def test_either_gelu_may_be_given_where_nothing_tells(layout):
    state_dict, _ = written(layout)
    (name,) = layout.needs
    with pytest.raises(ValueError, match=f"give --{name.replace('_', '-')}=gelu"):
        interop.load(state_dict, layout.name, num_heads=SMALL.num_heads)
    for given in ("gelu", "quick_gelu"):
        _, _, config = interop.load(state_dict, layout.name, **told(layout) | {name: given})
        image = given if name == "activation" else "gelu"
        assert (config.model.image_style.activation, config.model.text_activation) == (image, given)


def test_positions_are_interpolated_on_request_and_said_so(caplog):
    """As PyTorch's bicubic interpolation of the grid."""
    torch = pytest.importorskip("torch")
    _, before, _ = interop.load(clip_state_dict(), **heads())
    assert "interpolated" not in caplog.text
    model, variables, config = interop.load(clip_state_dict(), **heads(), image_size=48)
    assert "positions interpolated (bicubic) from 32 px to 48 px" in caplog.text
    grid = torch.from_numpy(np.array(before["params"]["image"]["positions"][1:])).reshape(1, 4, 4, -1).movedim(-1, 1)
    expected = torch.nn.functional.interpolate(grid, size=(6, 6), mode="bicubic").movedim(1, -1).reshape(36, -1)
    np.testing.assert_allclose(variables["params"]["image"]["positions"][1:], expected, atol=1e-5)
    embed_image = functools.partial(model.apply, method="embed_image")
    assert jax.eval_shape(embed_image, variables, jnp.zeros((1, 48, 48, 3))).shape == (1, SMALL.joint_width)
    assert (config.model.image_size, config.views.crops.large.size) == (48, 48)
    _, other, _ = interop.load(clip_state_dict(), **heads(), image_size=48, interpolation="timm")
    assert "positions interpolated (bicubic, as timm does) from 32 px to 48 px" in caplog.text
    moved, again = (tree["params"]["image"]["positions"] for tree in (variables, other))
    assert moved.shape == again.shape and np.abs(moved - again).max() > 1e-3


CODES = {  # how the published code interpolates positions, where that is not PyTorch's bicubic by sizes
    **{"open_clip": "timm", "flair": "timm", "timm": "timm", "tips": "tips"},  # FLAIR: open_clip's function
    **{"cosmos": "ibot", "ibot": "ibot", "dino": "ibot"},
    **{pe_names.table: "bilinear", pe_names.image_table: "bilinear", tips_names.pair_table: "tips"},
}


OTHERS = [layout for layout in LAYOUTS if layout.name != "dinov2"]  # test_dino_layouts.py runs its code


@pytest.mark.parametrize("layout", OTHERS, ids=lambda row: row.table.__name__)
def test_an_import_interpolates_positions_as_its_code_does(layout):
    config = state_dicts.config_of(layout, spec_for(layout, SMALL), {})
    assert config.model.interpolation == CODES.get(layout.table, CODES.get(layout.name, "bicubic"))
    given = state_dicts.config_of(layout, spec_for(layout, SMALL), {"interpolation": "tips"})
    assert given.model.interpolation == "tips"


def test_open_clip_interpolates_positions_as_timm_does():
    torch, open_clip = pytest.importorskip("torch"), pytest.importorskip("open_clip")
    state_dict, config = written(clip_names.OPEN_CLIP)
    _, variables, made = interop.load(state_dict, "open_clip", **heads(), activation="gelu", image_size=48)
    theirs = {"visual.positional_embedding": torch.from_numpy(np.array(state_dict["visual.positional_embedding"]))}
    visual = types.SimpleNamespace(grid_size=(6, 6))
    open_clip.model.resize_pos_embed(theirs, types.SimpleNamespace(visual=visual))
    expected = theirs["visual.positional_embedding"].numpy()
    assert made.model.interpolation == "timm" and expected.shape == (37, config.model.custom.width)
    np.testing.assert_allclose(variables["params"]["image"]["positions"], expected, atol=1e-5)


def test_models_that_a_layout_cannot_hold():
    _, variables, config = interop.load(clip_state_dict(), **heads())
    with pytest.raises(ValueError, match=r"'openai' cannot represent .* it needs .*pre_norm=True \(here False\)"):
        interop.to_state_dict(variables, config, "openai")
    with pytest.raises(ValueError, match=r"'reference' .*lacks: decoder"):
        interop.to_state_dict(variables, config, "reference")
    with pytest.raises(ValueError, match="layout 'clap' is unknown"):
        interop.to_state_dict(variables, config, "clap")
    with pytest.raises(ValueError, match=r"'clip' .*lacks: image_projection"):
        interop.to_state_dict({"params": {"image": variables["params"]["image"]}}, config, "clip")
    config.model.class_tokens = 2
    with pytest.raises(ValueError, match="layout 'clap' is unknown"):
        interop.to_state_dict(variables, config, "clap")
    with pytest.raises(ValueError, match=r"'clip' cannot represent .* it needs model.class_tokens=1 \(here 2\)"):
        interop.to_state_dict(variables, config, "clip")


def test_the_image_tower_s_own_kind_is_kept():
    layout = next(row for row in LAYOUTS if row.name == "openai")
    _, _, config = interop.load(written(layout)[0], "openai", **heads())
    assert Style(**config.model.image_style) == OPENAI_STYLE
    assert config.preprocess.mean == (0.48145466, 0.4578275, 0.40821073)


def test_a_config_without_a_table_s_size_builds_again():
    _, _, config = interop.load(clip_state_dict(), **heads())
    assert config.model.size == "custom"
    del config.model.custom["width"]
    with pytest.raises(ValueError, match=r"model.custom lacks width"):
        experiment.build(config, mesh.make_mesh(jax.devices()[:1]))
    assert config_lib.default().model.size == "B/16"


@functools.cache
def reference_state_dict():
    return written(LAYOUTS[0])[0]


def test_decoder_heads_are_said_and_an_option(caplog):
    _, _, config = interop.load(reference_state_dict(), **heads())
    assert model_sizes.size_of(config.model).decoder_heads == 4
    assert "decoder_heads 4 assumed" in caplog.text
    caplog.clear()
    _, _, config = interop.load(reference_state_dict(), **heads(), decoder_heads=6)
    assert model_sizes.size_of(config.model).decoder_heads == 6 and "decoder_heads" not in caplog.text


def test_a_file_of_the_published_code_makes_its_choices():
    _, _, config = interop.load(reference_state_dict(), "reference", **heads())
    preset = config_lib.reference_preset(config_lib.default())
    assert config.masking.granularity == preset.masking.granularity == "cell2x2"
    assert config.views.crops.large.scale == preset.views.crops.large.scale == (0.14, 1.0)
    assert (config.data.caption, config.data.keep_eot) == ("concat", False)


def test_a_clip_s_patch_embedding_stays_frozen():
    state_dict, _ = written(next(row for row in LAYOUTS if row.name == "aclip"))
    _, _, config = interop.load(state_dict, "aclip", **heads())
    assert config.model.freeze_patch_embed
    assert (config.masking.granularity, config.views.crops.large.filter) == ("cell2x2", "bilinear")
    assert not interop.load(clip_state_dict(), **heads())[2].model.freeze_patch_embed


@pytest.mark.parametrize("args", [argparse.Namespace(mask_ratio=0.25), {"mask_ratio": 0.25}])
def test_the_published_mask_ratio_is_the_share_kept(caplog, args):
    wrapped = {"state_dict": reference_state_dict(), "args": args}
    _, _, config = interop.load(wrapped, **heads())
    assert config.masking.ratio == 0.75
    assert "mask_ratio 0.25 in the file is the kept share: masking.ratio, the removed share, is 0.75" in caplog.text
    _, _, config = interop.load({"model": clip_state_dict(), "args": args}, "clip", **heads())
    assert config.masking.ratio == 0.5


@pytest.mark.parametrize("ratio", [0, 0.0, 1, -1, 0.99, float("nan"), "0.5", None])
def test_a_mask_ratio_that_is_no_share_is_named(caplog, ratio):
    """A-CLIP's README leaves it at 0."""
    wrapped = {"state_dict": reference_state_dict(), "args": {"mask_ratio": ratio}}
    assert interop.load(wrapped, **heads())[2].masking.ratio == 0.5
    assert f"mask_ratio {ratio!r} among the flags of the file is not a valid share" in caplog.text


def test_grids_without_cells_are_masked_by_patch(caplog):
    _, _, config = interop.load(reference_state_dict(), **heads(), image_size=40)
    assert config.masking.granularity == "patch"
    assert "a grid of 5 x 5 patches cannot be divided into cells of 2 x 2" in caplog.text


def test_our_own_format_keeps_all_class_tokens_and_other_layouts_refuse_them(tmp_path):
    config = tiny.tiny_config("clip")
    config.model.class_tokens = 3
    params = tiny.noise(experiment.weight_shapes(config).params)
    own_safetensors.write(tmp_path / "own.safetensors", params, config)
    _, variables, read = own_safetensors.read(tmp_path / "own.safetensors")
    assert read.model.class_tokens == 3
    jax.tree.map(np.testing.assert_array_equal, variables["params"], dict(params))
    for layout in ("clip", "open_clip", "huggingface", "timm"):
        with pytest.raises(ValueError) as raised:
            state_dicts.to_state_dict({"params": params}, config, layout)
        tiny.check_names(raised.value, layout, "model.class_tokens", "3", "--to=safetensors")
