"""FLAIR's published checkpoints, both ways, against a model built with PyTorch and open_clip."""

import numpy as np
import pytest
from library_features import check_export, inputs, ours, own_score

from detailclip_jax import export, import_torch, interop, load
from detailclip_jax.interop import tensor_files

torch = pytest.importorskip("torch")
open_clip = pytest.importorskip("open_clip")

WIDTH, JOINT, CONTEXT, VOCABULARY = 64, 32, 12, 50
IMAGE = {"layers": 2, "width": WIDTH, "head_width": 16, "patch_size": 8, "image_size": 32, "output_tokens": True}
TEXT = {"layers": 2, "width": JOINT, "heads": 4, "context_length": CONTEXT, "vocab_size": VOCABULARY}


class Projection(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.proj = torch.nn.Parameter(torch.zeros(width, JOINT))


class Pool(torch.nn.Module):
    """Eight heads, a norm of queries, keys and values each, and a key and a value of zeros."""

    def __init__(self):
        super().__init__()
        self.attn = torch.nn.MultiheadAttention(JOINT, 8, batch_first=True, add_zero_attn=True)
        self.ln_q, self.ln_k, self.ln_v = (torch.nn.LayerNorm(JOINT) for _ in range(3))

    def forward(self, texts, patches):
        queries = self.ln_q(texts)[None].expand(len(patches), -1, -1)
        return self.attn(queries, self.ln_k(patches), self.ln_v(patches))[0]


class Published(torch.nn.Module):
    """The names and shapes of the published code: its encoders have no projection of their own."""

    def __init__(self):
        super().__init__()
        clip = open_clip.model.CLIP(JOINT, dict(IMAGE), dict(TEXT))
        del clip.visual.proj
        clip.visual.proj = None
        self.visual, self.transformer = clip.visual, clip.transformer
        self.token_embedding, self.ln_final = clip.token_embedding, clip.ln_final
        self.positional_embedding = clip.positional_embedding
        self.logit_scale, self.logit_bias = (torch.nn.Parameter(torch.zeros([])) for _ in range(2))
        self.image_post, self.text_post, self.visual_proj = Projection(WIDTH), Projection(JOINT), Pool()
        self.mask = clip.attn_mask

    def images(self, batch):
        """Embeddings of the class token, and of the patches."""
        cls, patches = self.visual(torch.from_numpy(np.ascontiguousarray(batch.images.transpose(0, 3, 1, 2))))
        return cls @ self.image_post.proj, patches @ self.image_post.proj

    def texts(self, batch):
        ids = torch.from_numpy(batch.tokens).long()
        words = self.ln_final(
            self.transformer(self.token_embedding(ids) + self.positional_embedding, attn_mask=self.mask)
        )
        return words[torch.arange(len(ids)), ids.argmax(-1)] @ self.text_post.proj

    def cosines(self, batch):
        texts, (_, patches) = self.texts(batch), self.images(batch)
        return torch.nn.functional.cosine_similarity(self.visual_proj(texts, patches), texts[None], dim=-1)


def noise():
    model = Published()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2)
    return model.eval()


@pytest.fixture(scope="module")
def published():
    torch.manual_seed(0)
    return noise()


@pytest.fixture(scope="module")
def imported(published, tmp_path_factory):
    """A checkpoint as the published code saves it, imported."""
    folder = tmp_path_factory.mktemp("flair")
    tensors = {f"module.{key}": value for key, value in published.state_dict().items()}  # of several GPUs
    torch.save({"epoch": 32, "name": "run", "state_dict": tensors, "optimizer": {"state": {}}}, folder / "in.pt")
    command = [str(folder / "in.pt"), f"--out={folder / 'ours'}", "--num-heads=4", "--text-heads=4"]
    assert import_torch.main(command) == 0
    return folder


@pytest.mark.check
def test_features_and_scores_are_those_of_the_published_model(imported, published):
    model = load(imported / "ours")
    assert model.config.method == "flair" and model.config.data.caption == "diverse"
    assert model.config.model.image_style.activation == model.config.model.text_activation == "gelu"
    batch = inputs(model.config)
    with torch.inference_mode():
        image, text, cosines = published.images(batch)[0], published.texts(batch), published.cosines(batch)
    score = own_score(model.networks, model.params, model.config, batch)["score"]
    np.testing.assert_allclose(score, cosines.numpy(), atol=1e-5)
    found = ours(model.networks, model.params, batch)
    np.testing.assert_allclose(found["image"], image.numpy(), atol=1e-4)
    np.testing.assert_allclose(found["text"], text.numpy(), atol=1e-4)
    np.testing.assert_allclose(model.params["logit_scale"]["value"], published.logit_scale.item())
    np.testing.assert_allclose(model.params["logit_bias"]["value"], published.logit_bias.item())


@pytest.mark.parametrize("name", ["flair.pt", "flair.safetensors"])
def test_an_export_is_loaded_by_the_published_model(imported, published, tmp_path, capsys, name):
    out = tmp_path / name
    assert export.main([f"--checkpoint={imported / 'ours'}", "--to=flair", f"--out={out}"]) == 0
    printed = capsys.readouterr().out
    assert check_export("flair", imported / "ours", out) == {"image", "text", "score"}
    assert "left out" not in printed
    written = {key: torch.tensor(np.array(value)) for key, value in tensor_files.read(out).items()}
    noise().load_state_dict(written, strict=True)
    for key, value in published.state_dict().items():
        np.testing.assert_array_equal(written[key], value, err_msg=key)


def test_an_export_comes_back_with_its_preprocessing(imported, tmp_path, capsys):
    """From the card beside the file, since the published checkpoint has no place for it; flags replace it."""
    heads = ("--num-heads=4", "--text-heads=4")
    given = ("--resize-filter=bilinear", "--crop-ratio=.875", "--normalisation=imagenet", *heads)
    assert import_torch.main([str(imported / "in.pt"), f"--out={tmp_path / 'run'}", *given]) == 0
    expected, out = load(tmp_path / "run").config.preprocess.to_dict(), tmp_path / "flair.pt"
    assert export.main([f"--checkpoint={tmp_path / 'run'}", "--to=flair", f"--out={out}"]) == 0
    assert f"preprocessing is in {out}.json" in capsys.readouterr().out
    options = {"num_heads": 4, "text_heads": 4}
    assert interop.load(out, **options)[2].preprocess.to_dict() == expected
    other = interop.load(out, **options, normalisation="half")[2].preprocess
    assert (other.mean, other.filter) == ((0.5, 0.5, 0.5), "bilinear")
    (tmp_path / "flair.pt.json").unlink()
    assert interop.load(out, **options)[2].preprocess.filter == "bicubic"


def test_a_model_without_the_bias_is_refused(published):
    tensors = dict(published.state_dict())
    del tensors["logit_bias"]
    with pytest.raises(ValueError, match=r"missing: logit_bias"):
        interop.load(tensors, num_heads=4, text_heads=4)
