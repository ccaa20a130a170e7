# %% [markdown]
# # Inside DetailCLIP
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/REPOSITORY/blob/main/colabs/02_inside_detailclip.ipynb)
#
# The paper ([arXiv 2409.06809](https://arxiv.org/abs/2409.06809)) section by section: an equation, the function that
# computes it, and a figure of it.

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
# the model. The environment variable `MODEL` names another run to load instead: the outputs below are of the demo's run
# of 600 steps (`make demo`, `MODEL=stickers`), which takes longer.

# %%
from pathlib import Path

STEPS = int(os.environ.get("STEPS", 60))
RUNS = Path(os.environ.get("RUNS", "../runs"))
CHECKPOINT = RUNS / os.environ.get("MODEL", "quickstart")

# %%
import detailclip_jax
from detailclip_jax.config import run_config
from detailclip_jax.run import loop

if "MODEL" not in os.environ:
    config = run_config.load("stickers")
    config.total_steps, config.log_every, config.evaluate_at_end = STEPS, max(STEPS // 10, 1), False
    assert loop.train(loop.prepare(config, CHECKPOINT)) == 0
model = detailclip_jax.load(CHECKPOINT)
print(f"{model.config.method}, step {model.step}, {model.weights} weights")

# %%
import jax.numpy as jnp
import numpy as np

from detailclip_jax.figures import plots
from detailclip_jax.run import visualize

scenes = visualize.scenes(model.config, count=6)
student = detailclip_jax.load(CHECKPOINT, weights="student")
teacher = detailclip_jax.load(CHECKPOINT, weights="ema")

# %% [markdown]
# ## 3.1 Image-text contrast, eq. 1-5
#
# `losses.clip.image_to_text_loss` (eq. 1-2) and `text_to_image_loss` (eq. 3-4) are cross-entropies over the rows and
# the columns of the matrix of cosines, times the trained scale; `clip_loss` (eq. 5) is their mean. A good model has
# its highest values on the diagonal.

# %%
from detailclip_jax.data.stickers.stickers import Stickers
from detailclip_jax.losses.clip import image_to_text_loss, text_to_image_loss

source = Stickers("held_out_scenes", size=80, single_object=True)
pairs = [source[number] for number in range(16)]
images = jnp.asarray(student.encode_image([pair["image"] for pair in pairs]))
texts = jnp.asarray(student.encode_text([pair["captions"][0] for pair in pairs]))
scale = float(np.exp(np.asarray(jax.tree.leaves(student.params["logit_scale"])[0])))
pair = jnp.arange(len(pairs))
print(f"scale {scale:.1f}")
print(f"image to text {image_to_text_loss(images, texts, scale, pair).mean():.3f}")
print(f"text to image {text_to_image_loss(texts, images, scale, pair).mean():.3f}, chance {np.log(len(pairs)):.3f}")
plots.image_grid({"": [np.asarray(images @ texts.T)]}, "Cosines, images by captions", size=2.8)

# %% [markdown]
# ## 3.2.1 The teacher
#
# The teacher's weights are a moving average of the student's: `theta <- theta + (1 - m) (phi - theta)`, with a
# momentum `m` that rises to 1 along a cosine (`training.ema.update`, `training.schedules.cosine`). Student and
# teacher attend to similar patches.

# %%
from detailclip_jax.training import ema, schedules

momentum = schedules.cosine(0.996, 1.0, 600)
print("momentum at steps 0, 300, 600:", [round(float(momentum(step)), 4) for step in (0, 300, 600)])
moved = ema.update({"w": jnp.float32(0)}, {"w": jnp.float32(1)}, momentum(0))
print(f"a weight of 0 after a step towards 1: {float(moved['w']):.4f}")
visualize.draw("removal", {"student": student, "teacher": teacher}, scenes, visualize.Options())["removal"]

# %% [markdown]
# ## 3.2.2 Self-distillation, eq. 6 and 7: centers and temperatures
#
# Prototype logits of the teacher become a distribution after a center is subtracted and the rest is divided by a low
# temperature (`losses.distillation.teacher_log_probabilities`). The center is a moving average of the logits
# (`training.ema.update_center`): without it all images can have the same distribution; without the low temperature
# every distribution can be uniform. The entropy of the teacher's distribution of the CLS token, at several
# temperatures:

# %%
from detailclip_jax.losses.distillation import entropy, teacher_log_probabilities

networks = teacher.networks.bind({"params": teacher.params})
head = networks.prototype_head
cls = jnp.asarray(teacher.features([pair["image"] for pair in pairs]).cls)
logits = head.bottleneck(cls) @ head.prototypes().T
center = jnp.asarray(teacher.variables["centers"]["cls"])
print(f"{logits.shape[1]} prototypes, entropy of a uniform distribution {np.log(logits.shape[1]):.2f} nats")
for temperature in (1.0, 0.1, 0.07, 0.04, 0.02):
    values = [entropy(teacher_log_probabilities(logits, c, temperature)).mean() for c in (center, 0 * center)]
    print(f"temperature {temperature:<5} entropy {values[0]:.2f}, without the center {values[1]:.2f}")

# %% [markdown]
# ## 3.2.2 Pixel reconstruction, eq. 8
#
# `losses.reconstruction.pixel_loss`: the mean squared error of removed patches, each normalised by its own mean and
# variance. A prediction of 0 everywhere, the mean colour of each patch, has the loss 1.

# %%
visualize.draw("reconstruction", {"model": teacher}, scenes, visualize.Options())["reconstruction"]

# %% [markdown]
# ## 3.2.3 The attention value, eq. 9: by layer and by head
#
# The CLS token's attention to each patch, averaged over all heads and layers, decides which patches are removed.
# `models.attention.cls_attention` computes a layer, `Model.attention_heads` all of them.

# %%
figures = visualize.draw("attention", {"teacher": teacher}, scenes, visualize.Options())
figures["attention"]

# %%
figures["attention_heads"]

# %% [markdown]
# ## 3.2.3 Token removal: ratio and granularity
#
# `methods.masking.attention_low` removes the patches with the lowest values. The paper removes half of them; the
# published code removes 2x2 cells. DetailCLIP keeps what is attended to, MAE removes at random.

# %%
from detailclip_jax.methods.masking import Rule, attention_low

side = teacher.attention(scenes.images[0]).shape[0]
values = jnp.asarray(np.stack([teacher.attention(image).ravel() for image in scenes.images]))
squares = visualize.views({"teacher": teacher}, scenes)
rows = {}
for ratio, granularity in ((0.25, "patch"), (0.5, "patch"), (0.75, "patch"), (0.5, "cell2x2")):
    removed = np.asarray(attention_low(Rule(side, ratio, granularity), attention=values).mask)
    rows[f"{ratio:.0%} removed\nby {granularity}"] = [plots.grey_out(*each) for each in zip(squares, removed)]
plots.image_grid(rows, "Kept patches", scenes.credit)

# %% [markdown]
# ## Eq. 10: the sum
#
# A step of training computes all terms; `loss` is their weighted sum.

# %%
from detailclip_jax.data.pipeline import open_pipeline, open_source

config = model.config.copy_and_resolve_references()
config.batch_size = 16
experiment = detailclip_jax.build(config)
with open_pipeline(config, open_source(config)) as batches:
    _, metrics = experiment.train_step(experiment.init(0), experiment.put(next(batches)))
weights = dict(config.losses.weights)
for name, weight in weights.items():
    if name in metrics:
        print(f"{weight:4} x {name:<15} {float(metrics[name]):.3f}")
print(f"       loss            {float(metrics['loss']):.3f}   (untrained, 16 images)")
