"""COSMOS's published checkpoints, both ways, against models and pools built with PyTorch and open_clip."""

import jax
import numpy as np
import pytest
from library_features import check_equal, check_export, inputs, ours

from detailclip_jax import export, import_torch, interop, load
from detailclip_jax.interop import tensor_files

torch = pytest.importorskip("torch")
open_clip = pytest.importorskip("open_clip")

WIDTH, JOINT, CONTEXT, VOCABULARY = 64, 32, 12, 50
IMAGE = {"layers": 2, "width": WIDTH, "head_width": 16, "patch_size": 8, "image_size": 32}
TEXT = {"layers": 2, "width": JOINT, "heads": 4, "context_length": CONTEXT, "vocab_size": VOCABULARY}


class Pool(torch.nn.Module):
    """The published pool: a query attends to tokens of the other modality."""

    def __init__(self):
        super().__init__()
        self.attn = torch.nn.MultiheadAttention(JOINT, 8)
        self.ln_q, self.ln_k = (torch.nn.LayerNorm(JOINT) for _ in range(2))

    def forward(self, tokens, query):
        tokens = self.ln_k(tokens).transpose(0, 1)
        return self.attn(self.ln_q(query).transpose(0, 1), tokens, tokens)[0].transpose(0, 1)


def published():
    """A model with the names and shapes of the published code."""
    model = open_clip.model.CLIP(JOINT, dict(IMAGE), dict(TEXT))
    model.visual.attn_cross_pool, model.text_attn_cross_pool = Pool(), Pool()
    model.image_token_mapping = torch.nn.Linear(WIDTH, JOINT)
    model.text_token_mapping = torch.nn.Linear(JOINT, JOINT)
    model.distill_logit_scale = torch.nn.Parameter(torch.zeros([]))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2)
    return model.eval()


@pytest.fixture(scope="module")
def models():
    torch.manual_seed(0)
    return {"student": published(), "teacher": published()}


@pytest.fixture(scope="module")
def imported(models, tmp_path_factory):
    """A checkpoint as the published code saves it, imported."""
    folder = tmp_path_factory.mktemp("cosmos")
    parts = {name: model.state_dict() for name, model in models.items()}
    parts["student"] = {f"module.{key}": value for key, value in parts["student"].items()}  # of several GPUs
    torch.save({"epoch": 32, "name": "run", **parts, "optimizer": {"state": {}}}, folder / "epoch_32.pt")
    command = [str(folder / "epoch_32.pt"), f"--out={folder / 'ours'}", "--num-heads=4", "--text-heads=4"]
    assert import_torch.main(command) == 0
    return folder


def encoded(module, batch):
    with torch.inference_mode():
        images = torch.from_numpy(np.ascontiguousarray(batch.images.transpose(0, 3, 1, 2)))
        text = module.encode_text(torch.from_numpy(batch.tokens).long())
        return {"image": module.encode_image(images).numpy(), "text": text.numpy()}


def test_student_and_teacher_are_read(imported, models):
    for weights, name in (("student", "student"), ("ema", "teacher"), (None, "teacher")):
        model = load(imported / "ours", weights=weights)
        assert model.config.method == "cosmos" and model.config.data.caption == "crops"
        assert model.config.model.image_style.activation == model.config.model.text_activation == "gelu"
        batch = inputs(model.config)
        check_equal(encoded(models[name], batch), ours(model.networks, model.params, batch))


@pytest.mark.parametrize("size", [16, 48])  # a local crop and a larger image
def test_positions_of_another_size_are_interpolated_as_published(imported, models, size):
    """The published encoder scales the grid by (side + .1) / sqrt(N) where an image has another size."""
    model, (old, new) = load(imported / "ours", weights="student"), (IMAGE["image_size"] // 8, size // 8)
    tensors = models["student"].visual.state_dict()
    grid = tensors["positional_embedding"][1:].reshape(1, old, old, -1).movedim(-1, 1)
    factor = (new + 0.1) / old
    moved = torch.nn.functional.interpolate(grid, scale_factor=(factor, factor), mode="bicubic").movedim(1, -1)
    tensors["positional_embedding"] = torch.cat([tensors["positional_embedding"][:1], moved.flatten(0, 2)])
    theirs = open_clip.model.CLIP(JOINT, {**IMAGE, "image_size": size}, dict(TEXT)).eval()
    theirs.visual.load_state_dict(tensors, strict=False)  # without the pools
    images = np.random.default_rng(0).standard_normal((2, size, size, 3)).astype(np.float32)
    with torch.inference_mode():
        expected = theirs.encode_image(torch.from_numpy(images).movedim(-1, 1)).numpy()
    with jax.default_matmul_precision("float32"):
        found = jax.jit(model.networks.bind({"params": model.params}).embed_image)(images)
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def test_crops_attend_to_words_and_texts_to_patches(imported, models):
    """Cross features as the published forward pass computes them from embeddings and tokens."""
    model, student = load(imported / "ours", weights="student"), models["student"]
    rng = np.random.default_rng(0)
    crops, texts = rng.standard_normal((2, 3, 1, JOINT)).astype(np.float32)
    words = rng.standard_normal((3, CONTEXT, JOINT)).astype(np.float32)
    patches = rng.standard_normal((3, 16, WIDTH)).astype(np.float32)
    with torch.inference_mode():
        by_words = student.text_attn_cross_pool(student.text_token_mapping(torch.tensor(words)), torch.tensor(crops))
        by_patches = student.visual.attn_cross_pool(
            student.image_token_mapping(torch.tensor(patches)), torch.tensor(texts)
        )

    @jax.jit
    def pooled(params, crops, words, texts, patches):
        net = model.networks.bind({"params": params})
        by_words = net.image_pool(crops, net.word_projection(words))
        return by_words, net.text_pool(texts, net.patch_projection(patches))

    with jax.default_matmul_precision("float32"):
        ours_words, ours_patches = pooled(model.params, crops, words, texts, patches)
    np.testing.assert_allclose(ours_words, by_words.numpy(), atol=1e-5)
    np.testing.assert_allclose(ours_patches, by_patches.numpy(), atol=1e-5)
    np.testing.assert_allclose(model.params["distill_scale"]["value"], student.distill_logit_scale.item())
    np.testing.assert_allclose(model.params["logit_scale"]["value"], student.logit_scale.item())


@pytest.mark.parametrize("name", ["cosmos.pt", "cosmos.safetensors"])
def test_an_export_is_loaded_by_the_published_model(imported, models, tmp_path, capsys, name):
    out = tmp_path / name
    assert export.main([f"--checkpoint={imported / 'ours'}", "--to=cosmos", f"--out={out}"]) == 0
    printed = capsys.readouterr().out
    assert len(check_export("cosmos", imported / "ours", out)) == 4
    assert f"preprocessing is in {out}.json" in printed and (tmp_path / f"{name}.json").is_file()
    content = tensor_files.read(out)
    for part, model in models.items():
        written = {key: torch.tensor(np.array(value)) for key, value in tensor_files.part_of(content, part).items()}
        published().load_state_dict(written, strict=True)
        unused = ("cross_pool", "token_mapping", "logit_scale")  # of the teacher: the student's, see interop.cosmos
        for key, value in model.state_dict().items():
            if part == "student" or not any(word in key for word in unused):
                np.testing.assert_array_equal(written[key], value, err_msg=key)
    _, variables, config = interop.load(out, num_heads=4, text_heads=4)
    assert config.method == "cosmos" and set(variables["ema_params"]) == {
        "image",
        "image_projection",
        "text",
        "text_projection",
    }


def test_a_model_without_the_pools_is_refused(imported, models):
    parts = {name: dict(model.state_dict()) for name, model in models.items()}
    del parts["student"]["text_attn_cross_pool.ln_q.weight"]
    with pytest.raises(ValueError, match=r"missing: student\.text_attn_cross_pool\.ln_q\.weight"):
        interop.load(parts, num_heads=4, text_heads=4)
