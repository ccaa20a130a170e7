# %% [markdown]
# # Quickstart
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/REPOSITORY/blob/main/colabs/01_quickstart.ipynb)
#
# DetailCLIP ([arXiv 2409.06809](https://arxiv.org/abs/2409.06809)) pretrains a CLIP that sees detail: the CLS
# attention of a teacher chooses the patches that the student keeps. This notebook trains a small one on scenes of
# drawings that the library composes itself, and looks at what it has learned: attention, removed patches,
# reconstructions, zero-shot classification and search. It also opens a published CLIP by its name. It takes a few
# minutes on a CPU.

# %%
# In Colab this installs the library. Elsewhere: pip install -e '.[demo,hub,torch]' in a clone.
# %matplotlib inline
import os
import shutil
import subprocess
import sys

if "google.colab" in sys.modules:
    packages = ["detailclip_jax[demo,hub] @ git+https://github.com/REPOSITORY"]
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

# %% [markdown]
# ## Training
#
# Each loss term by step: the total (eq. 10), image-text contrast (eq. 1-5), CLS and patch distillation (eq. 6 and 7),
# and pixel reconstruction (eq. 8).

# %%
from detailclip_jax.figures import plots
from detailclip_jax.runtime.metric_files import read_lines

metrics = CHECKPOINT / "metrics.jsonl"
plots.loss_curves(read_lines(metrics)) if metrics.exists() else print("an imported checkpoint has no curves")

# %% [markdown]
# ## Attention and removal
#
# The mean of the CLS attention over heads and layers (eq. 9) selects the half of the patches that the student keeps.
# The scenes show pairs of objects that training never shows together. Change `first` for other scenes, or `ratio`.

# %%
from detailclip_jax.figures import model_figures

models = {"EMA teacher" if model.weights == "ema" else "student": model}
scenes = model_figures.scenes(model.config, count=6, first=0)
model_figures.draw("removal", models, scenes, model_figures.Options(ratio=0.5))["removal"]

# %% [markdown]
# ## Reconstruction
#
# The decoder predicts the removed patches from the kept ones. The brightness of a patch is the true one, because the
# target is normalised per patch: the figure shows the predicted structure.

# %%
model_figures.draw("reconstruction", models, scenes, model_figures.Options(ratio=0.5))["reconstruction"]

# %% [markdown]
# ## Zero-shot classification
#
# Every noun is inserted into the same few prompts, and the mean of their embeddings stands for the noun. The nearest
# of the 96 nouns is the prediction; chance is 1 %.

# %%
import numpy as np

from detailclip_jax.data.stickers.scene_source import noun_names, zero_shot_prompts
from detailclip_jax.evaluation import sticker_scenes

names = np.array(noun_names())

source = sticker_scenes.scenes(model.config, "held_out_scenes", 200, single_object=True)
unseen = [source[number] for number in range(200)]
cosines = model.classify([scene["image"] for scene in unseen], zero_shot_prompts())
labels = np.array([scene["label"] for scene in unseen])
print(f"top-1 of 200 scenes: {(cosines.argmax(1) == labels).mean():.1%}")
for label, row in list(zip(labels, cosines))[:6]:
    print(f"{names[label]:>12}   " + ", ".join(f"{names[i]} {row[i]:.2f}" for i in np.argsort(-row)[:3]))

# %% [markdown]
# ## Your own image and captions
#
# Set `image` to the path of a file, a PIL image or an array. A model of the drawings knows little of photographs.

# %%
image = unseen[0]["image"]  # or "photo.jpg"
captions = [f"a {names[labels[0]]}", "a frog", "a bus", "two red kites"]

cosine = (model.encode_image([image]) @ model.encode_text(captions).T)[0]
for caption, value in sorted(zip(captions, cosine), key=lambda pair: -pair[1]):
    print(f"{value:6.2f}  {caption}")

# %% [markdown]
# ## A published model
#
# A model of the Hugging Face hub is opened by its name: it is downloaded (600 MB) and converted once. The photograph
# comes with matplotlib. If the hub cannot be reached, the model from above and its scene take their place.

# %%
from matplotlib import cbook
from PIL import Image

from detailclip_jax.figures import maps

NAME = "hf://openai/clip-vit-base-patch16"
try:
    public = detailclip_jax.load(NAME)
    picture = np.asarray(Image.open(cbook.get_sample_data("grace_hopper.jpg")).convert("RGB"))
    captions = ["a woman in a uniform", "a flag", "a dog on a beach"]
except (OSError, ImportError) as error:  # no connection to the hub, or a package is missing
    print(f"{error}\nThe model from above takes its place.")
    NAME, public, picture = str(CHECKPOINT.name), model, image

public = public.on_squares()
shares = public.shares(public.encode_image([picture]) @ public.encode_text(captions).T)[0]
seen = maps.Seen(public.view(picture), public.attention(picture), shares, public.dense(picture, captions))
maps.seen_figure(picture, captions, {NAME: seen})

# %% [markdown]
# ## Search
#
# The images that are nearest to a text, of the 200 scenes. The command `embed` does this with a folder of your
# images.

# %%
queries = ["a frog", "a sunflower", "a guitar"]
embedded = model.encode_image([scene["image"] for scene in unseen])
nearest = np.argsort(-(model.encode_text(queries) @ embedded.T), axis=1)[:, :6]
rows = {query: [unseen[i]["image"] for i in row] for query, row in zip(queries, nearest)}
plots.image_grid(rows, "The nearest scenes of 200", scenes.credit)
