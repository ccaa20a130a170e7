# %% [markdown]
# # To PyTorch
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/REPOSITORY/blob/main/colabs/03_to_pytorch.ipynb)
#
# A model that is trained here can be used with timm, open_clip and Hugging Face transformers. This notebook writes
# all three, loads each with its own library, and compares the features with ours.

# %%
# In Colab this installs the library. Elsewhere: pip install -e '.[demo,torch]' in a clone.
# %matplotlib inline
import os
import shutil
import subprocess
import sys

if "google.colab" in sys.modules:
    packages = ["detailclip_jax[demo,torch] @ git+https://github.com/REPOSITORY"]
    packages += ["jax[cuda12]"] if shutil.which("nvidia-smi") else []
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *packages], check=True)

import jax

print(f"jax {jax.__version__} on {len(jax.devices())} x {jax.devices()[0].device_kind}")

# %% [markdown]
# The next cell trains a model for `STEPS` steps. It continues a training that was interrupted, and the notebooks share
# the model. The environment variable `MODEL` names another run to load instead: `MODEL=stickers` takes that of `make
# demo`, which has 600 steps. The outputs below are of a shorter one, with `--config.total_steps=300`.

# %%
from pathlib import Path

STEPS = int(os.environ.get("STEPS", 60))
RUNS = Path(os.environ.get("RUNS", "../runs"))
CHECKPOINT = RUNS / os.environ.get("MODEL", "quickstart")

# %%
import detailclip_jax
from detailclip_jax import pretraining
from detailclip_jax.config import run_config
from detailclip_jax.training.train import train

if "MODEL" not in os.environ:
    config = run_config.load("stickers")
    config.total_steps, config.log_every, config.evaluate_at_end = STEPS, max(STEPS // 10, 1), False
    assert train(pretraining.prepare(config, CHECKPOINT)) == 0
model = detailclip_jax.load(CHECKPOINT)
print(f"{model.config.method}, step {model.step}, {model.weights} weights")

# %%
import itertools
import json

import numpy as np

from detailclip_jax import export
from detailclip_jax.data.stickers.scene_source import Stickers

folder = RUNS / "to_pytorch"
shutil.rmtree(folder, ignore_errors=True)
folder.mkdir(parents=True)
source = Stickers("held_out_scenes", size=80, single_object=True)
images = [source[number]["image"] for number in range(8)]
texts = [source[number]["captions"][0] for number in range(8)]

# What both libraries are given: the square that our preprocessing cuts, normalised.
mean, std = (np.float32(model.config.preprocess[name]) for name in ("mean", "std"))
pixels = (np.stack([model.view(image) for image in images]) / np.float32(255) - mean) / std


def largest_difference(theirs, ours):
    return f"largest difference {np.abs(theirs - ours).max():.1e}, of values up to {np.abs(ours).max():.1f}"


# %% [markdown]
# ## timm: the image encoder
#
# `export --to=timm` writes a state dict and a card with the arguments of `timm.create_model`.

# %%
assert export.main([f"--checkpoint={CHECKPOINT}", "--to=timm", f"--out={folder / 'vit.pth'}"]) == 0

# %%
import timm
import torch

card = json.loads((folder / "vit.pth.json").read_text())
vit = timm.create_model(**card["create_model"]).eval()
vit.load_state_dict(torch.load(folder / "vit.pth", weights_only=True))
with torch.inference_mode():
    tokens = vit.forward_features(torch.from_numpy(pixels).permute(0, 3, 1, 2))
print(largest_difference(tokens[:, 0].numpy(), model.features(images).cls))

# %% [markdown]
# ## open_clip: images and texts
#
# The folder is loaded by `open_clip.create_model_and_transforms`, with its preprocessing and tokenizer. It is loaded
# from within, because timm registers no image encoder of this size, and the folder's config names its own subfolder.

# %%
assert export.main([f"--checkpoint={CHECKPOINT}", "--to=open_clip", f"--out={folder / 'open_clip'}"]) == 0

# %%
import contextlib

import open_clip

with contextlib.chdir(folder / "open_clip"):
    clip, _, preprocess = open_clip.create_model_and_transforms("local-dir:.")
    tokenize = open_clip.get_tokenizer("local-dir:.")
with torch.inference_mode():
    theirs = clip.eval().encode_image(torch.from_numpy(pixels).permute(0, 3, 1, 2), normalize=True).numpy()
    captions = clip.encode_text(tokenize(texts), normalize=True).numpy()
print("images:", largest_difference(theirs, model.encode_image(images)))
print("texts: ", largest_difference(captions, model.encode_text(texts)))

# %% [markdown]
# ## Hugging Face transformers
#
# The card in the folder names the class.

# %%
assert export.main([f"--checkpoint={CHECKPOINT}", "--to=huggingface", f"--out={folder / 'huggingface'}"]) == 0

# %%
from transformers import AutoModel

hub = AutoModel.from_pretrained(folder / "huggingface").eval()
print(type(hub).__name__)
with torch.inference_mode():
    found = hub.get_image_features(pixel_values=torch.from_numpy(pixels).permute(0, 3, 1, 2))
found = getattr(found, "pooler_output", found).numpy()
found /= np.linalg.norm(found, axis=-1, keepdims=True)
print("images:", largest_difference(found, model.encode_image(images)))

# %% [markdown]
# ## In a PyTorch pipeline
#
# The timm encoder is an ordinary module: a linear layer on its class token learns which of the first four nouns a
# scene shows.

# %%
picked = list(itertools.islice((scene for scene in source if scene["label"] < 4), 64))
views = np.stack([(model.view(scene["image"]) / np.float32(255) - mean) / std for scene in picked])
with torch.inference_mode():
    features = vit.forward_features(torch.from_numpy(views).permute(0, 3, 1, 2))[:, 0]
labels = torch.tensor([scene["label"] for scene in picked])
torch.manual_seed(0)
layer = torch.nn.Linear(features.shape[1], 4)
optimiser = torch.optim.Adam(layer.parameters(), 1e-2)
features, half = features.clone(), len(picked) // 2
for _ in range(100):
    loss = torch.nn.functional.cross_entropy(layer(features[:half]), labels[:half])
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
right = (layer(features[half:]).argmax(1) == labels[half:]).float().mean().item()
print(f"{half} scenes to learn from, {len(picked) - half} others: {right:.0%} right, chance 25 %")
