"""Images and texts in, embeddings and attention out: against naive loops, other libraries, and what users give."""

import dataclasses
import functools
import io
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from PIL import Image

import detailclip_jax
from detailclip_jax.data.decoding import BadImage, decode
from detailclip_jax.data.tokenizer import Tokenizer
from detailclip_jax.data.vocabularies import tokenizer_of
from detailclip_jax.evaluation.embedder import Embedder
from detailclip_jax.inference import batching, readout_maps
from detailclip_jax.inference.batching import SHAPES
from detailclip_jax.inference.model import Model, choose_weights, pixels
from detailclip_jax.training import checkpoint, experiment
from detailclip_jax.training.mesh import make_mesh

SIZE = 32


@functools.cache
def made(method, **fields):
    """(networks, variables, config) of a tiny row, every parameter noise, with CLIP's own vocabulary."""
    config = tiny.tiny_config(method)
    config.model.vocab_size, config.model.custom = 49408, tiny.TWO_BLOCKS
    config.update_from_flattened_dict(fields)
    built = experiment.build(config, make_mesh(jax.devices()[:1]))
    rng, shapes = np.random.default_rng(0), built.state_shapes
    noise = functools.partial(jax.tree.map, lambda x: jax.device_put(np.asarray(rng.normal(0, 0.2, x.shape), x.dtype)))
    variables = {"params": noise(shapes.params), "ema_params": noise(shapes.ema_params)}
    return built.model, variables | {"batch_stats": noise(shapes.batch_stats)}, config


@functools.cache
def model_of(method="detailclip", weights=None):
    networks, variables, config = made(method)
    which, params = choose_weights(variables, weights)
    return Model(networks, variables, config, params, which, 3, "runs/tiny")


def changed(**fields):
    """The model with another config around the same weights."""
    config = model_of().config.copy_and_resolve_references()
    config.update_from_flattened_dict(fields)
    return dataclasses.replace(model_of(), config=config)


def make_images(count, seed=0, size=SIZE):
    return list(np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), np.uint8))


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def normalised(image, config):
    """One image as a batch of float32."""
    return jax.device_put(np.float32((image / 255 - config.preprocess.mean) / config.preprocess.std)[None])


def test_images_one_by_one_from_the_equation():
    """Resize, crop, normalise, tower, projection, L2: with Pillow and one image at a time."""
    model = model_of()
    scaled = Image.fromarray(make_images(1, seed=1, size=64)[0]).resize((48, 40))
    cut = np.asarray(scaled.resize((int(SIZE * 48 / 40), SIZE), Image.Resampling.BILINEAR))[:, 3 : 3 + SIZE]
    given, seen = [*make_images(2), scaled], [*make_images(2), cut]
    embed = jax.jit(functools.partial(model.networks.apply, method="embed_image"))
    inputs = [normalised(image, model.config) for image in seen]
    expected = unit(np.concatenate([embed({"params": model.params}, batch) for batch in inputs]))
    found = model.encode_image(given)
    assert found.dtype == np.float32 and found.shape == (3, 64)
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_texts_one_by_one_from_the_equation():
    model, texts = model_of(), ["a frog", "two red kites above a bus"]
    tokens = Tokenizer(tiny.TEXT)(texts)
    embed = jax.jit(functools.partial(model.networks.apply, method="embed_text"))
    found = model.encode_text(texts)
    assert found.dtype == np.float32
    np.testing.assert_allclose(
        found, unit(np.concatenate([embed({"params": model.params}, row[None]) for row in tokens])), atol=2e-6
    )


def test_any_number_of_inputs_compiles_a_shape_once():
    model = changed(**{"preprocess.mean": (0.49, 0.48, 0.47)})  # equal models would share their functions
    images, texts = make_images(SHAPES[-1] + 3), [f"{number} frogs" for number in range(SHAPES[-1] + 3)]
    all_images, all_texts = model.encode_image(images), model.encode_text(texts)
    for count in (0, 1, 2, 7, 16, 21, SHAPES[-1], SHAPES[-1] + 2):
        np.testing.assert_allclose(model.encode_image(images[:count]), all_images[:count], atol=2e-6)
        np.testing.assert_allclose(model.encode_text(texts[:count]), all_texts[:count], atol=2e-6)
    assert model.encode.image._cache_size() <= len(SHAPES)
    assert model.encode.text._cache_size() <= len(SHAPES)
    np.testing.assert_array_equal(model.encode_image(iter(images)), all_images)
    np.testing.assert_array_equal(model.encode_image(np.stack(images)), all_images)


def test_few_rows_are_padding_and_a_batch_of_a_compiled_shape_is_not_padded():
    """16 images were padded to 64."""
    for shapes in (SHAPES, (8, 16, 64), (1, 3)):
        assert all(batching.batch_sizes(shape, shapes) == [shape] for shape in shapes)
        for count in range(1, 200):
            sizes = batching.batch_sizes(count, shapes)
            wasted = sum(sizes) - count
            assert set(sizes) <= set(shapes) and sizes == sorted(sizes, reverse=True)
            assert 0 <= wasted < sizes[-1] and (6 * wasted <= count or sizes[-1] == shapes[0])
    assert batching.batch_sizes(0) == [] and batching.batch_sizes(40) == [16, 16, 4, 4]
    assert [batching.batch_sizes(count) for count in (63, 2, 130)] == [[64], [1, 1], [64, 64, 4]]


def test_two_calls_are_ahead_of_the_one_that_is_copied():
    taken = []
    calls = (taken.append(number) or number for number in range(5))
    seen = [(number, len(taken)) for number in batching.in_turn(calls)]
    assert seen == [(0, 3), (1, 4), (2, 5), (3, 5), (4, 5)]


def test_attention_is_the_mean_over_layers_on_the_grid_of_patches():
    model, image = model_of(), make_images(1)[0]
    batch = normalised(image, model.config)
    method = lambda net, x: net.image(x, attention=True)
    tokens = jax.jit(functools.partial(model.networks.apply, method=method))({"params": model.params}, batch)
    layers = np.asarray(tokens.attention)[0]  # [L, N], each the mean over heads
    found = model.attention(image)
    assert found.shape == (4, 4) and found.dtype == np.float32
    for row in range(4):
        for column in range(4):
            np.testing.assert_allclose(found[row, column], layers[:, 4 * row + column].mean(), rtol=1e-5)
    assert 0 < found.sum() < 1  # the rest goes to the CLS token


# images of every kind


def encoded(image, kind):
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


RGB = Image.fromarray(make_images(1, seed=2, size=9)[0])
ALPHA = Image.merge("RGBA", (*RGB.split(), RGB.split()[0]))
MODES = {
    "RGB": (RGB, "PNG"),
    "L": (RGB.convert("L"), "PNG"),
    "1": (RGB.convert("1"), "PNG"),
    "P": (RGB.convert("P"), "PNG"),
    "LA": (ALPHA.convert("LA"), "PNG"),
    "RGBA": (ALPHA, "PNG"),
    "CMYK": (RGB.convert("CMYK"), "TIFF"),
    "I;16": (Image.fromarray(np.arange(81, dtype=np.uint16).reshape(9, 9) * 800), "PNG"),
}


@pytest.mark.parametrize("mode", MODES)
def test_a_pil_image_of_any_mode_is_read_like_its_file(mode, tmp_path):
    image, kind = MODES[mode]
    data = encoded(image, kind)
    (tmp_path / "image").write_bytes(data)
    expected = decode(data)
    for given in (image, data, tmp_path / "image", str(tmp_path / "image")):
        np.testing.assert_array_equal(pixels(given), expected)


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_pixels_of_unknown_range_are_refused(dtype):
    image = Image.fromarray(np.full((9, 9), 200, dtype))
    for given in (image, encoded(image, "TIFF")):
        with pytest.raises(BadImage, match=r"32 bits .*save it with 8 or 16 bits"):
            pixels(given)


def test_a_path_may_begin_with_the_home_folder(tmp_path, monkeypatch, workdir):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "run").symlink_to(workdir)
    RGB.save(tmp_path / "a.png")
    np.testing.assert_array_equal(pixels("~/a.png"), np.asarray(RGB))
    assert detailclip_jax.load("~/run").step == 0


def test_arrays_are_read_like_pil_images():
    rgb, gray, alpha = (np.asarray(image) for image in (RGB, RGB.convert("L"), ALPHA))
    np.testing.assert_array_equal(pixels(rgb), rgb)
    for given in (gray, gray[:, :, None]):
        np.testing.assert_array_equal(pixels(given), np.repeat(gray[:, :, None], 3, 2))
    share = alpha[:, :, 3:] / 255
    np.testing.assert_allclose(pixels(alpha), rgb * share + 255 * (1 - share), atol=1)
    np.testing.assert_array_equal(pixels(jnp.asarray(rgb)), rgb)


def test_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by a quarter
    buffer = io.BytesIO()
    RGB.resize((9, 5)).save(buffer, "PNG", exif=exif)
    turned = Image.open(buffer)
    assert pixels(turned).shape == (9, 5, 3)
    np.testing.assert_array_equal(pixels(turned), decode(buffer.getvalue()))


@pytest.mark.parametrize("shape", [(1, 500), (3000, 200), (33, 32)])
def test_sides_of_any_length(shape):
    assert model_of().view(np.zeros((*shape, 3), np.uint8)).shape == (SIZE, SIZE, 3)


@pytest.mark.parametrize(
    "array", [np.zeros((9, 9, 3)), np.zeros((3, 9, 9), np.uint8), np.zeros((1, 9, 9, 3), np.uint8), np.zeros(9)]
)
def test_numbers_that_may_mean_another_image_are_refused(array):
    with pytest.raises(TypeError, match=r"not an image.*PIL image, a path.*uint8 \[height, width, 3\]"):
        pixels(array)


@pytest.mark.parametrize("images", [["frog.png"], ("frog.png",), [RGB]])
def test_a_list_is_not_one_image(images):
    with pytest.raises(TypeError, match=r"expected one image, got a \w+ of 1; write image, not \[image\]"):
        pixels(images)


@pytest.mark.parametrize("image", [RGB, np.asarray(RGB), "frog.png", b""])
def test_one_image_needs_its_brackets(image):
    with pytest.raises(TypeError, match=r"takes a list of images, got one \w+; write \[image\]"):
        model_of().encode_image(image)
    with pytest.raises(TypeError, match=r"write \[text\]"):
        model_of().encode_text("a frog")


def test_a_damaged_image_is_named_by_its_place():
    cut = Image.open(io.BytesIO(encoded(RGB.resize((99, 99)), "PNG")[:2000]))
    for bad in (b"no image", cut):
        with pytest.raises(BadImage, match="image 2: "):
            model_of().encode_image([*make_images(2), bad])


def test_long_texts_are_cut_and_said_so(caplog):
    model_of().encode_text(["a frog"])
    assert not caplog.records
    long = "frog " * 20
    np.testing.assert_array_equal(model_of().encode_text([long]), model_of().encode_text([long + "frog"]))
    assert "1 of 1 texts were cut to 12 tokens" in caplog.text


# weights, rows, checkpoints


def test_the_teacher_is_the_default_where_there_is_one():
    _, variables, _ = made("detailclip")
    ema, student = model_of(), model_of(weights="student")
    assert (ema.weights, student.weights, model_of("clip").weights) == ("ema", "student", "student")
    image, heads = variables["ema_params"]["image"], variables["params"]["decoder"]
    assert ema.params["image"] is image and ema.params["decoder"] is heads
    assert student.params["image"] is variables["params"]["image"]
    assert abs(ema.encode_image(make_images(1)) - student.encode_image(make_images(1))).max() > 0.01
    of, size = f"<Model {student.path}, step {student.step}, student: detailclip", student.config.model.size
    assert repr(student) == f"{of} {size}, {student.config.model.image_size} pixels>"
    assert choose_weights(variables, None, usual="student")[0] == "student"  # a method may say so
    assert choose_weights(variables, "ema", usual="student")[0] == "ema"


@pytest.mark.parametrize(
    "method", ["mae", *(pytest.param(name, marks=pytest.mark.check) for name in ("supervised", "image_encoder"))]
)
def test_an_image_encoder_alone_gives_its_class_feature(method, caplog):
    """From the networks, one image at a time; said once, however often it is asked."""
    model = dataclasses.replace(model_of(method), path=f"runs/alone/{method}")  # said once for each path
    given = make_images(3)
    apply = jax.jit(functools.partial(model.networks.apply, method=lambda net, x: net.image(x)))
    inputs = [normalised(image, model.config) for image in given]
    found, tokens = model.encode_image(given), [apply({"params": model.params}, batch) for batch in inputs]
    assert found.dtype == np.float32 and found.shape == (3, 96) and model.encode_image([]).shape == (0, 96)
    np.testing.assert_allclose(found, unit(np.concatenate([each.cls for each in tokens])), atol=2e-6)
    said = [each for each in caplog.messages if "no joint space: encode_image gives the L2-normalised class" in each]
    assert len(said) == 1


@pytest.mark.parametrize("method", ["detailclip", pytest.param("clip", marks=pytest.mark.check)])
def test_features_are_float32_tokens_on_the_grid(method):
    model, given = model_of(method), make_images(9)
    features = model.features(given)
    assert features.cls.shape == (9, 96) and features.patches.shape == (9, 4, 4, 96)
    assert {array.dtype for array in features} == {np.dtype(np.float32)}
    whole = jax.jit(functools.partial(model.networks.apply, method=lambda net, x: net.image(x)))
    tokens = whole({"params": model.params}, normalised(given[8], model.config))
    (cls,), (patches,) = np.asarray(tokens.cls), np.asarray(tokens.patches)
    np.testing.assert_allclose(features.cls[8], cls, atol=2e-5)
    for row, column in ((0, 0), (1, 3), (3, 2)):
        np.testing.assert_allclose(features.patches[8, row, column], patches[4 * row + column], atol=2e-5)
    assert [array.shape for array in model.features([])] == [(0, 96), (0, 4, 4, 96)]


def test_features_are_float32_whatever_the_run_computes_in():
    networks = made("mae")[0]
    networks = networks.replacing(image=networks.image.clone(dtype=jnp.bfloat16))
    half = dataclasses.replace(model_of("mae"), networks=networks)
    assert {array.dtype for array in half.features(make_images(1))} == {np.dtype(np.float32)}
    assert half.encode_image(make_images(1)).dtype == np.float32


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    _, variables, config = made("detailclip")
    path = tmp_path_factory.mktemp("runs") / "detailclip"
    checkpoint.save_weights(path, variables, config, "noise")
    return path


def test_a_workdir_is_loaded(workdir):
    model = detailclip_jax.load(workdir)
    assert (model.weights, model.step, model.path) == ("ema", 0, str(workdir))
    np.testing.assert_allclose(model.encode_image(make_images(2)), model_of().encode_image(make_images(2)), atol=2e-6)
    assert model.fingerprint == model_of().fingerprint
    with pytest.raises(FileNotFoundError, match="no checkpoint of step 7"):
        detailclip_jax.load(workdir, step=7)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        detailclip_jax.load(workdir / "nothing")


def test_the_fingerprint_knows_weights_and_reading():
    others = [
        model_of(weights="student"),
        changed(**{"preprocess.mean": (0.5, 0.5, 0.5)}),
        changed(**{"model.text_activation": "gelu"}),
        changed(**{"model.image_style.norm_eps": 1e-5}),
    ]
    prints = {model.fingerprint for model in (model_of(), *others)}
    assert len(prints) == 5 and all(len(value) == 12 for value in prints)
    same = changed(log_every=7), changed(**{"model.image_style.position_std": 1.0})
    assert {model.fingerprint for model in same} == {model_of().fingerprint}
    flair = model_of("flair")  # whose scores depend on its pool, as results of `evaluate` do
    pool = jax.tree.map(jnp.zeros_like, flair.params["caption_pool"])
    others = dataclasses.replace(flair, params={**flair.params, "caption_pool": pool})
    assert others.fingerprint != flair.fingerprint


def test_weights_in_bfloat16_have_a_fingerprint():
    rounded = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), model_of().params)
    assert dataclasses.replace(model_of(), params=rounded).fingerprint != model_of().fingerprint


def test_the_fingerprint_knows_the_geometry():
    ways = ({}, {"filter": "bicubic"}, {"resize": "squash"}, {"crop_ratio": 0.875}, {"std": (0.5, 0.5, 0.5)})
    assert len({model_of().preprocessed(fields).fingerprint for fields in ways}) == 5
    assert model_of().preprocessed({"filter": None, "crop_ratio": 1.0}).fingerprint == model_of().fingerprint


def test_views_follow_the_record():
    image = Image.fromarray(make_images(1, seed=7, size=64)[0]).resize((90, 50))
    model = model_of().preprocessed({"filter": "bicubic", "crop_ratio": 0.8})
    expected = image.resize((72, 40), Image.Resampling.BICUBIC).crop((20, 4, 52, 36))
    np.testing.assert_array_equal(model.view(image), np.asarray(expected))
    squashed = model_of().preprocessed({"resize": "squash"}).view(image)
    np.testing.assert_array_equal(squashed, np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR)))
    with pytest.raises(ValueError, match="'cubic'; did you mean 'bicubic'"):
        model.preprocessed({"filter": "cubic"})


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_imported_openai_clip_gives_open_clip_s_embeddings(tmp_path):
    """The same weights, images and words through open_clip and torchvision, with CLIP's own mean and deviation."""
    torch = pytest.importorskip("torch")
    open_clip = pytest.importorskip("open_clip")
    transforms = pytest.importorskip("torchvision.transforms")
    from detailclip_jax import import_torch

    image = {"layers": 1, "width": 48, "head_width": 12, "patch_size": 8, "image_size": SIZE}
    text = {"context_length": 12, "vocab_size": 49408, "width": 32, "heads": 4, "layers": 1}
    torch.manual_seed(0)
    theirs = open_clip.model.CLIP(24, image, text, quick_gelu=True).eval()
    torch.save({**theirs.state_dict(), "input_resolution": torch.tensor(SIZE)}, tmp_path / "clip.pt")
    arguments = ["--from=openai", str(tmp_path / "clip.pt"), f"--out={tmp_path}/run", "--num-heads=4"]
    assert import_torch.main([*arguments, "--text-heads=4"]) == 0
    model = detailclip_jax.load(tmp_path / "run")
    given = [Image.fromarray(image).resize((90, 50)) for image in make_images(3, seed=4)]
    preprocess = transforms.Compose(
        [
            transforms.Resize(SIZE, transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(SIZE),
            transforms.ToTensor(),
            transforms.Normalize(open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD),
        ]
    )
    texts = ["a frog", "Two red kites."]
    with torch.inference_mode():
        images = theirs.encode_image(torch.stack([preprocess(image) for image in given])).numpy()
        words = theirs.encode_text(open_clip.SimpleTokenizer(context_length=12)(texts)).numpy()
    np.testing.assert_allclose(model.encode_image(given), unit(images), atol=1e-5)
    np.testing.assert_allclose(model.encode_text(texts), unit(words), atol=1e-5)


def test_a_timm_import_gives_timm_s_features(tmp_path):
    """The same file, image and pretrained_cfg through timm's own transform and forward_features."""
    torch, timm = pytest.importorskip("torch"), pytest.importorskip("timm")
    from detailclip_jax import import_torch

    torch.manual_seed(0)
    theirs = timm.models.VisionTransformer(SIZE, 8, embed_dim=48, depth=1, num_heads=4, num_classes=0).eval()
    torch.save(theirs.state_dict(), tmp_path / "vit.pth")
    assert import_torch.main([str(tmp_path / "vit.pth"), f"--out={tmp_path}/run", "--num-heads=4"]) == 0
    stated = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "crop_pct": 0.9}  # crop_pct: timm's own
    transform = timm.data.create_transform((3, SIZE, SIZE), interpolation="bicubic", **stated)
    given = Image.fromarray(make_images(1, seed=4, size=64)[0]).resize((90, 50))
    with torch.inference_mode():
        tokens = theirs.forward_features(transform(given)[None]).numpy()[0]
    features = detailclip_jax.load(tmp_path / "run").features([given])
    np.testing.assert_allclose(features.cls[0], tokens[0], atol=2e-5)
    np.testing.assert_allclose(features.patches[0].reshape(-1, 48), tokens[1:], atol=2e-5)


# the package's front door


def test_dir_lists_the_lazy_names():
    code = "import sys, detailclip_jax; print(*dir(detailclip_jax)); sys.exit('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert {"load", "build", "default", "METHODS", "__version__", "__name__"} <= set(done.stdout.split())
    assert all(getattr(detailclip_jax, name) is not None for name in detailclip_jax.__all__)
    with pytest.raises(AttributeError, match=r"has no 'laod'; public names: .*load"):
        detailclip_jax.laod  # noqa: B018


def test_a_score_of_pairs_is_no_cosine_and_this_is_logged_once(caplog):
    for method in ("clip", "flair", "flair"):
        dataclasses.replace(model_of(method), path="runs/pairs").encode_text(["a frog"])
    said = [message for message in caplog.messages if "by a score of pairs" in message]
    assert len(said) == 1 and "flair" in said[0]


@pytest.mark.parametrize(("name", "kind"), [("detect", "detection"), ("segment", "segmentation")])
def test_a_method_of_a_dense_run_names_the_kind_of_run_that_has_it(name, kind):
    model = model_of()
    assert not hasattr(model, name) and not hasattr(model, "nothing")
    with pytest.raises(AttributeError, match=f"runs/tiny is .* detailclip.*{name} needs a run of {kind}"):
        getattr(model, name)
    with pytest.raises(AttributeError, match="'Model' object has no attribute 'nothing'"):
        model.nothing  # noqa: B018


def test_a_class_is_the_mean_of_its_prompts():
    """From the definition, one prompt at a time, and as evaluation embeds classes."""
    model, images = model_of(), make_images(3)
    classes, templates = ["cat", ["dog", "puppy"]], ["a photo of a {}.", "a drawing of a {}.", "{}"]
    scores = model.classify(images, classes, templates)
    assert scores.shape == (3, 2) and scores.dtype == np.float32
    prompts = [[t.replace("{}", name) for t in templates for name in names] for names in (["cat"], classes[1])]
    means = [unit(np.mean([model.encode_text([text])[0] for text in texts], 0)) for texts in prompts]
    np.testing.assert_allclose(scores, model.encode_image(images) @ np.stack(means).T, atol=2e-6)
    embedder = Embedder(model.encode, tokenizer_of(model.config))
    expected = model.encode_image(images) @ embedder.classes(model.params, prompts).T
    np.testing.assert_allclose(scores, expected, atol=2e-6)
    one = model.classify(images, ["a cat", "a dog"])
    np.testing.assert_allclose(one, model.encode_image(images) @ model.encode_text(["a cat", "a dog"]).T, atol=2e-6)


@pytest.mark.parametrize("readout", [None, "plain", "maskclip"])
def test_patch_embeddings_are_those_of_the_map_of_texts(readout):
    model, (image,) = model_of(), make_images(1)
    patches = model.patch_embeddings([image, image[::-1]], readout)
    assert patches.shape == (2, 4, 4, 64) and patches.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(patches, axis=-1), 1, rtol=1e-5)
    encoder = readout_maps.readout_encoder(model.networks, model.config, readout or model.readout)
    np.testing.assert_allclose(patches[:1], encoder(model.params, image[None]), atol=2e-6)
    if readout == "plain":
        projected = model.features([image]).patches @ np.asarray(model.params["image_projection"]["proj"]["kernel"])
        np.testing.assert_allclose(patches[0], unit(projected[0]), atol=2e-5)


def test_patch_embeddings_of_no_image_have_their_shape():
    assert model_of().patch_embeddings([]).shape == (0, 4, 4, 64)
