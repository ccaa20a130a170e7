# %% [markdown]
# # Inside DetailCLIP
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/REPOSITORY/blob/main/colabs/02_inside_detailclip.ipynb)
#
# The paper ([arXiv 2409.06809](https://arxiv.org/abs/2409.06809)) section by section: an equation, the function that
# computes it, and a figure of it. `docs/differences.md` says where the published code, which this library follows by
# default, computes something else than the paper prints.

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
import jax.numpy as jnp
import numpy as np

from detailclip_jax.figures import model_figures, plots, style

scenes = model_figures.scenes(model.config, count=4)
student = detailclip_jax.load(CHECKPOINT, weights="student")
teacher = detailclip_jax.load(CHECKPOINT, weights="ema")

# %% [markdown]
# ## One batch
#
# The forward pass of training on 16 pairs of the training set, with the weights of the checkpoint. Its record has what
# the losses read. An image has two augmented views; arrays are [views, images, ...].

# %%
from detailclip_jax.data.pipeline import open_pipeline, open_source

config = model.config.copy_and_resolve_references()
config.batch_size = 16
experiment = detailclip_jax.build(config)
untrained = experiment.init(0)
fields = ("params", "ema_params", "batch_stats", "running")
state = untrained.replace(step=jnp.int32(model.step), **{name: model.variables[name] for name in fields})
with open_pipeline(config, open_source(config)) as batches:
    batch = experiment.put(next(batches))
record = experiment.forward(state, batch)
heads = record.heads
views = np.moveaxis(np.asarray(batch["image"]["large"]), 1, 0)
for name in ("image_embedding", "student_cls", "student_patches", "predicted_pixels"):
    print(f"{name:<17} {heads[name].shape}")
shown = {"first view": list(views[0, :6]), "second view": list(views[1, :6])}
plots.image_grid(shown, "Six of the images", scenes.credit, size=0.75)


# %%
def curves(lines, label, values, size=(4.4, 2.5)):
    """Several lines (x, y) by name, in colours that differ with colour blindness too."""
    figure = style.blank(*size)
    axes = figure.subplots()
    for (name, (x, y)), colour in zip(lines.items(), style.OKABE_ITO):
        axes.plot(x, y, color=colour, label=name)
    axes.set_xlabel(label)
    axes.set_ylabel(values)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    return figure


# %% [markdown]
# ## 3.1 Image-text contrast, eq. 1-5
#
# $u_i$ and $t_j$ are the L2-normalised embeddings of images and captions, $s$ is the trained scale, $N$ the number of
# pairs. Eq. 1 and 2 classify an image: which of all captions is its own, `losses.clip.image_to_text_loss`. Eq. 3 and 4
# classify a caption among all images, `losses.clip.text_to_image_loss`. Eq. 5: the mean, `losses.clip.clip_loss`.
#
# $$L_{I2T}(i) = -\log \frac{\exp(s\, u_i \cdot t_i)}{\sum_{j=1}^{N} \exp(s\, u_i \cdot t_j)} \tag{1, 2}$$
#
# $$L_{T2I}(i) = -\log \frac{\exp(s\, t_i \cdot u_i)}{\sum_{j=1}^{N} \exp(s\, t_i \cdot u_j)} \tag{3, 4}$$
#
# $$L_{CLIP} = \frac{1}{N} \sum_{i=1}^{N} \frac{L_{I2T}(i) + L_{T2I}(i)}{2} \tag{5}$$
#
# A good model has its highest values on the diagonal.

# %%
from detailclip_jax.losses.clip import clip_loss, image_to_text_loss, l2_normalise, similarity, text_to_image_loss

images, texts = l2_normalise(heads["image_embedding"]), l2_normalise(record.text.embedding)
scale, pair = jnp.exp(heads["logit_scale"]), jnp.arange(config.batch_size)
loss, accuracy = clip_loss(heads["image_embedding"], record.text.embedding, scale)
print(f"scale {scale:.1f}; chance {np.log(len(pair)):.3f}")
print(f"image to text {image_to_text_loss(images[0], texts[0], scale, pair).mean():.3f}, of the first view")
print(f"text to image {text_to_image_loss(texts[0], images[0], scale, pair).mean():.3f}")
print(f"clip_loss     {loss:.3f}, of both views; {accuracy:.0%} of the images find their caption")
logits = similarity(images[0], texts[0], scale)
shown = [logits / scale, jax.nn.softmax(logits, 1), jax.nn.softmax(logits, 0)]
names = ["cosine", "softmax over\ncaptions", "softmax over\nimages"]
plots.image_grid({"images (rows) by\ncaptions (columns)": list(map(np.asarray, shown))}, "Eq. 1-4", "", names, size=1.9)

# %% [markdown]
# ## 3.2.1 The teacher
#
# The teacher's weights $\theta$ are a moving average of the student's, $\phi$ (`training.ema.update`). The momentum
# $\lambda$ rises along a cosine (`training.schedules.cosine`): from .996 to 1 in the paper, .98 to .99 on stickers,
# since in a short run a higher one would hardly move the teacher.
#
# $$\theta \leftarrow \lambda \theta + (1 - \lambda) \phi$$

# %%
from detailclip_jax.training import ema, schedules

steps = np.arange(601)
lines = {
    f"from {start}": (steps, schedules.cosine(start, end, 600)(steps)) for start, end in ((0.996, 1), (0.98, 0.99))
}
moved = ema.update({"w": jnp.float32(0)}, {"w": jnp.float32(1)}, schedules.cosine(0.996, 1.0, 600)(0))
print(f"a weight of 0 after a step towards 1: {float(moved['w']):.4f}")
curves(lines, "step", "momentum")

# %% [markdown]
# Student and teacher attend to similar patches:

# %%
model_figures.draw("removal", {"student": student, "teacher": teacher}, scenes, model_figures.Options())["removal"]

# %% [markdown]
# ## 3.2.2 Centers and temperatures
#
# Both networks compute logits $z$ of prototypes. The teacher's become a distribution after a center $c$ is subtracted
# and the rest is divided by a low temperature (`losses.distillation.teacher_log_probabilities`); the student's have no
# center (`losses.distillation.student_log_probabilities`). The center is a moving average of the teacher's mean logits
# (`methods.running_statistics.update_center`).
#
# $$p_s = \mathrm{softmax}(z_s / T_s), \qquad p_t = \mathrm{softmax}((z_t - c) / T_t), \qquad
# c \leftarrow .9\, c + .1\, \overline{z_t}$$
#
# Without the center all images can have the same distribution; without the low temperature every distribution can be
# uniform.

# %%
from detailclip_jax.losses.distillation import entropy, student_log_probabilities, teacher_log_probabilities
from detailclip_jax.methods.running_statistics import update_center

losses, center = config.losses, state.running["cls"]
temperature = experiment.schedules.temperatures["cls"](model.step)
student_log = student_log_probabilities(heads["student_cls"][...], losses.student_temperature)
teacher_log = teacher_log_probabilities(heads["teacher_cls"][...], center, temperature)
moved = update_center(center, heads["cls_mean"], losses.center_momentum)
print(f"temperatures: student {losses.student_temperature}, teacher {temperature:.2f}")
print(
    f"this batch moves the center by {jnp.abs(moved - center).mean():.4f}, its values have {jnp.abs(center).mean():.4f}"
)
temperatures = np.geomspace(0.01, 1, 25)
lines = {
    name: (
        temperatures,
        [entropy(teacher_log_probabilities(heads["teacher_cls"][...], c, t)).mean() for t in temperatures],
    )
    for name, c in (("with the center", center), ("without", 0 * center))
}
lines["uniform"] = (temperatures[[0, -1]], [np.log(len(center))] * 2)
figure = curves(lines, "temperature of the teacher", "entropy, nats")
figure.axes[0].set_xscale("log")
figure

# %% [markdown]
# ## 3.2.2 Distillation of the CLS token, eq. 6
#
# The student predicts the teacher's distribution of the image, from the other view. The paper prints
# $D = \mathrm{KL}(p_s \,\|\, p_t)$; the published code, and the default here, computes the cross-entropy
# $-\sum p_t \log p_s$ (`losses.divergence`). `losses.distillation.cls_divergence` is the value of each image.
#
# $$L_{CLS} = \frac{1}{N} \sum_{i=1}^{N} \frac{1}{2} \sum_{v \neq w} D\big(p_s(x_i^v),\, p_t(x_i^w)\big) \tag{6}$$
#
# The diagonal compares two views of the same image. Distributions of different images differ more.

# %%
from detailclip_jax.losses.distillation import DIVERGENCES, cls_divergence

shown = {}
for name in ("kl_student_teacher", "cross_entropy"):
    divergence = DIVERGENCES[name]
    print(f"{name:<18} {cls_divergence(student_log, teacher_log, divergence).mean():.3f}")
    shown[name.replace("_", " ")] = np.asarray(divergence(student_log[0][:, None], teacher_log[1][None]))
names = list(shown)
plots.image_grid(
    {"student's images (rows)\nby teacher's (columns)": list(shown.values())}, "Eq. 6", "", names, size=1.9
)

# %% [markdown]
# ## 3.2.2 Distillation of the removed patches, eq. 7
#
# At the removed patches $R_i$, which only the decoder predicts, the student predicts the teacher's distribution of the
# patch in the same view: `losses.distillation.patch_divergence` is the value of each image.
#
# $$L_{Patch} = \frac{1}{N} \sum_{i=1}^{N} \frac{1}{|R_i|} \sum_{n \in R_i}
# D\big(p_s(x_{i,n}),\, p_t(x_{i,n})\big) \tag{7}$$

# %%
from detailclip_jax.losses.distillation import patch_divergence

patch_temperature = experiment.schedules.temperatures["patch"](model.step)
patch_student = student_log_probabilities(heads["student_patches"][...], losses.student_temperature)
patch_teacher = teacher_log_probabilities(heads["teacher_patches"][...], state.running["patch"], patch_temperature)
divergence, removed = DIVERGENCES[losses.divergence], np.asarray(record.hidden.removed)
every = jnp.ones(removed.shape, bool)  # the arrays hold removed patches only
print(f"{losses.divergence} {patch_divergence(patch_student, patch_teacher, every, divergence).mean():.3f}")
grid = np.full(record.hidden.mask.shape, np.nan, np.float32)  # of kept patches nothing is drawn
np.put_along_axis(grid, removed, np.asarray(divergence(patch_student, patch_teacher)), -1)
side = round(grid.shape[-1] ** 0.5)
inputs = [plots.grey_out(image, np.asarray(mask)) for image, mask in zip(views[0, :6], record.hidden.mask[0])]
values = [one.reshape(side, side) for one in grid[0, :6]]
shown = {"student's input": inputs, "divergence at\nremoved patches": values}
plots.image_grid(shown, "Eq. 7", scenes.credit, size=0.75)

# %% [markdown]
# ## 3.2.2 Pixel reconstruction, eq. 8
#
# The decoder predicts the pixels $x_{i,n}$ of removed patches, each normalised by its own mean and variance
# (`models.patchify.normalise_patches`). `losses.reconstruction.pixel_loss` is the mean squared error; the paper prints
# the sum over the values of a patch.
#
# $$L_{Rec} = \frac{1}{N} \sum_{i=1}^{N} \frac{1}{|R_i|} \sum_{n \in R_i}
# \big\| \hat{x}_{i,n} - x_{i,n} \big\|^2 \tag{8}$$
#
# A prediction of 0 everywhere, the mean colour of each patch, has nearly the loss 1.

# %%
from detailclip_jax.losses.reconstruction import pixel_loss
from detailclip_jax.models.patchify import normalise_patches, patchify, take

pixels = patchify(record.views["large"].image, model.config.model.image_size // side)
target = normalise_patches(take(pixels, record.hidden.removed), losses.pixel_eps)
print(f"pixel_loss {pixel_loss(heads['predicted_pixels'], target):.3f}")
print(f"of a prediction of 0 {pixel_loss(0 * target, target):.3f}")
model_figures.draw("reconstruction", {"model": teacher}, scenes, model_figures.Options())["reconstruction"]

# %% [markdown]
# ## 3.2.3 The attention value, eq. 9: by layer and by head
#
# $q_{cls}$ is the query of the CLS token and $K$ are the keys of all tokens, in each of the teacher's $L$ layers and
# $H$ heads of width $d$. `models.attention.cls_attention` computes a layer, `methods.components.attention_value` the
# mean over layers: it decides which patches are removed.
#
# $$a = \frac{1}{L H} \sum_{l=1}^{L} \sum_{h=1}^{H}
# \mathrm{softmax}\Big( \frac{q_{cls}^{l,h} {K^{l,h}}^{\top}}{\sqrt{d}} \Big) \tag{9}$$

# %%
from detailclip_jax.methods.components import attention_value
from detailclip_jax.models.attention import cls_attention

rng = np.random.default_rng(0)
query, key = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((1, 4, 8), (1, 5, 4, 8)))
print("one query over five keys:", " ".join(f"{value:.3f}" for value in cls_attention(query, key)[0]))
values = attention_value(record.targets["full"])
print(f"values {values.shape}, the sum over patches is {values.sum(-1).mean():.3f}: the rest is the CLS token's own")
figures = model_figures.draw("attention", {"teacher": teacher}, scenes, model_figures.Options())
figures["attention"]

# %%
figures["attention_heads"]

# %% [markdown]
# ## 3.2.3 Token removal: ratio and granularity
#
# `methods.masking.attention_low` removes the share $r$ of the patches that has the lowest values. The paper removes
# half of them; the published code removes 2x2 cells. DetailCLIP keeps what is attended to, MAE removes at random.
#
# $$R = \{\text{the } \lfloor r N_{patches} \rfloor \text{ patches with the lowest } a_n\}$$

# %%
from detailclip_jax.methods.masking import RemovalRule, attention_low

values = jnp.asarray(np.stack([teacher.attention(image).ravel() for image in scenes.images]))
squares = model_figures.views({"teacher": teacher}, scenes)
rows = {}
for ratio, granularity in ((0.25, "patch"), (0.5, "patch"), (0.75, "patch"), (0.5, "cell2x2")):
    removed = np.asarray(attention_low(RemovalRule(side, ratio, granularity), attention=values).mask)
    rows[f"{ratio:.0%} removed\nby {granularity}"] = [plots.grey_out(*each) for each in zip(squares, removed)]
plots.image_grid(rows, "Kept patches", scenes.credit)

# %% [markdown]
# ## The sum, eq. 10
#
# A step of training computes all terms (`methods.method.values`); the loss is their weighted sum
# (`methods.method.total`). The weights are `config.losses.weights`: 1 each in the paper, and .1 for both distillations
# on stickers.
#
# $$L = L_{CLIP} + \alpha_1 L_{CLS} + \alpha_2 L_{Patch} + \alpha_3 L_{Rec} \tag{10}$$

# %%
from detailclip_jax.methods.method import Context, WholeBatch, total
from detailclip_jax.methods.method import values as values_of

bars = {}
for name, weights in (("untrained", untrained), (f"step {model.step}", state)):
    current = {term: schedule(weights.step) for term, schedule in experiment.schedules.temperatures.items()}
    context = Context(weights.running, current)
    found = values_of(experiment.method, experiment.forward(weights, batch), context, WholeBatch())
    bars[name] = {term: one.weight * float(found[term]) for term, one in experiment.method.terms.items()}
    listed = " + ".join(f"{one.weight} x {found[term]:.3f} {term}" for term, one in experiment.method.terms.items())
    print(f"{name:>9}: {listed} = {total(experiment.method, found):.3f}")

figure = style.blank(6, 1.6)
axes = figure.subplots()
for number, parts in enumerate(bars.values()):
    left = np.cumsum([0, *parts.values()])
    for start, width, colour in zip(left, parts.values(), style.OKABE_ITO):
        axes.barh(number, width, left=start, color=colour, edgecolor="white")
axes.set_yticks(range(len(bars)), list(bars))
axes.invert_yaxis()
axes.set_xlabel("weighted terms of the loss")
axes.spines[["top", "right"]].set_visible(False)
axes.legend(
    list(next(iter(bars.values()))), frameon=False, fontsize=8, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1)
)
figure.tight_layout()
figure
