# %% [markdown]
# # Dense features
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/REPOSITORY/blob/main/colabs/04_dense.ipynb)
#
# Four looks at the patch features of a frozen encoder: principal components, similar patches, maps for words without
# any training, and masks by a linear head.

# %%
# In Colab this installs the library. Elsewhere: pip install -e '.[demo]' in a clone.
# %matplotlib inline
import os
import shutil
import subprocess
import sys

if "google.colab" in sys.modules:
    packages = ["detailclip_jax[demo] @ git+https://github.com/REPOSITORY"]
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
from detailclip_jax.figures import model_figures

scenes = model_figures.scenes(model.config, count=6)
models, options = {"model": model}, model_figures.Options()

# %% [markdown]
# ## Principal components
#
# The first three components of all patch features as red, green and blue. The images share the components: equal
# colours are similar features.

# %%
model_figures.draw("pca", models, scenes, options)["pca"]

# %% [markdown]
# ## Similar patches
#
# The cosine of every patch with a chosen one, here the most attended patch of each image. Set `patch=(row, column)`
# to choose.

# %%
model_figures.draw("similarity", models, scenes, options)["similarity"]

# %% [markdown]
# ## Maps for words, without training
#
# `model.dense(image, texts)` compares texts with every place of an image. CLIP trains its class token only; a
# read-out changes the last block, so that the feature of a patch describes its own place (`naclip`, `sclip`,
# `clearclip`, `gem`, ...). Each map is shown relative to the mean over all 96 nouns.

# %%
three = model_figures.scenes(model.config, count=3)
model_figures.draw("words", models, three, model_figures.Options(readout="naclip"))["words"]

# %% [markdown]
# ## Masks by a linear head
#
# The command `transfer` trains a segmentation head on an encoder. Here one linear layer separates objects from the
# background by the frozen features, on images of twice the size that the encoder was trained on. The outputs below are
# of `HEAD_STEPS=300`. `docs/segmentation.md` has UPerNet, and heads that name the objects.

# %%
from detailclip_jax.dense import prediction_figures, runs

HEAD_STEPS = int(os.environ.get("HEAD_STEPS", 60))
config = run_config.load("transfer/stickers_linear")
config.init = str(CHECKPOINT)
config.total_steps, config.log_every = HEAD_STEPS, max(HEAD_STEPS // 4, 1)
config.optimizer.warmup_steps = min(config.optimizer.warmup_steps, HEAD_STEPS // 2)
config.data.num_val, config.evaluate_at_end = 100, True
workdir = RUNS / "linear"
shutil.rmtree(workdir, ignore_errors=True)
assert train(runs.prepare(config, workdir)) == 0

# %%
prediction_figures.draw({"linear head": workdir})
