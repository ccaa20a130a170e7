# %% [markdown]
# # Your data
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/REPOSITORY/blob/main/colabs/05_your_data.ipynb)
#
# From images with captions, in a folder or in tars of webdataset, to a better model of them: prepare records, continue
# from a CLIP, compare before and after. The images here are drawings, so that nothing has to be downloaded; replace
# them by your own.

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
# `CLIP` is the workdir of a CLIP to continue from. Here it is trained for `STEPS` steps on the built-in scenes; 60
# steps are too few to learn anything. The environment variable `MODEL` names another run to continue from. The outputs
# below start from a CLIP of 300 steps, which take longer: `python -m detailclip_jax.main
# --config=stickers:method=clip --config.total_steps=300 --workdir=runs/clip`, then `MODEL=clip`. The command
# `import_torch` makes a workdir from a published PyTorch checkpoint.

# %%
from pathlib import Path

STEPS = int(os.environ.get("STEPS", 60))
RUNS = Path(os.environ.get("RUNS", "../runs"))
CLIP = RUNS / os.environ.get("MODEL", "quickstart_clip")

# %% [markdown]
# ## A folder of images with a table of captions, and a webdataset
#
# 400 drawings of twelve nouns on white, as JPEG files. 300 of them are a folder, with `captions.csv`, whose columns are
# `image` and `caption`. 100 are a webdataset: a tar in which `0000.jpg` and `0000.txt` are an image and its caption.

# %%
import csv
import io
import itertools
import tarfile

import numpy as np
from PIL import Image

from detailclip_jax.data.stickers.scene_source import Stickers, noun_names

FOLDER = RUNS / "mine"
NAMES = noun_names()[:12]


def drawings(split, count):
    """Drawings of these nouns alone."""
    source = Stickers(split, size=80, single_object=True, scenes="on_white", seed=7)
    return list(itertools.islice((one for one in source if one["label"] < len(NAMES)), count))


def jpeg(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


shutil.rmtree(FOLDER, ignore_errors=True)
(FOLDER / "images").mkdir(parents=True)
mine = drawings("train", 400)
with open(FOLDER / "captions.csv", "w", newline="") as file:
    table = csv.writer(file)
    table.writerow(["image", "caption"])
    for number, example in enumerate(mine[:300]):
        (FOLDER / f"images/{number:04}.jpg").write_bytes(jpeg(example["image"]))
        table.writerow([f"images/{number:04}.jpg", example["captions"][0]])
with tarfile.open(FOLDER / "shard-00000.tar", "w") as tar:
    for number, example in enumerate(mine[300:]):
        for ending, content in (("jpg", jpeg(example["image"])), ("txt", example["captions"][0].encode())):
            member = tarfile.TarInfo(f"{number:04}.{ending}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
print(f'{len(mine)} images, the first one is "{mine[0]["captions"][0]}"')

# %% [markdown]
# ## Prepare
#
# Training reads ArrayRecord shards. The command `prepare` writes them from tables, webdataset, COCO and others, and
# checks every image. `docs/data.md` has the formats. In a terminal:
# `python -m detailclip_jax.prepare webdataset DIR --out RECORDS`.

# %%
from detailclip_jax import prepare

SOURCES = {"csv": FOLDER / "captions.csv", "webdataset": FOLDER / "shard-00000.tar"}
for kind, source in SOURCES.items():
    assert prepare.main([kind, str(source), "--out", str(FOLDER / f"records-{kind}"), "--workers", "1"]) == 0

# %% [markdown]
# ## A CLIP to continue from

# %%
import detailclip_jax
from detailclip_jax import pretraining
from detailclip_jax.config import run_config
from detailclip_jax.training.train import train

if "MODEL" not in os.environ:
    config = run_config.load("stickers:method=clip")
    config.total_steps, config.log_every, config.evaluate_at_end = STEPS, max(STEPS // 4, 1), False
    assert train(pretraining.prepare(config, CLIP)) == 0

# %% [markdown]
# ## Continue as DetailCLIP
#
# `config.data.path` names both sets and their weights: three examples in four are from the folder. `config.init` names
# the CLIP. Networks that it lacks (decoder, heads) are new, and the teacher starts as a copy of the student. Tensors
# that come from the CLIP learn at a third of the rate. A quarter of the patches is removed instead of half: the encoder
# is trained already, and evaluation encodes all patches (`docs/experiments.md`).

# %%
config = run_config.load("stickers")
config.data.source, config.init = "records", str(CLIP)
config.data.path = f"{FOLDER / 'records-csv'}@3,{FOLDER / 'records-webdataset'}@1"
config.batch_size, config.optimizer.loaded_rate, config.masking.ratio = 64, 0.3, 0.25
config.total_steps, config.log_every, config.evaluate_at_end = STEPS, max(STEPS // 4, 1), False
workdir = FOLDER / "run"
assert train(pretraining.prepare(config, workdir)) == 0

# %% [markdown]
# ## Before and after
#
# The nearest of the twelve nouns, for new renderings that neither model has seen. Both models are the student: a CLIP
# has no teacher, and after so few steps the teacher still averages in the weights that it started from.

# %%
texts = [f"a {name}" for name in NAMES]
test = drawings("held_out_scenes", 200)
labels = np.array([example["label"] for example in test])
models = {name: detailclip_jax.load(run, weights="student") for name, run in (("before", CLIP), ("after", workdir))}
for name, model in models.items():
    cosines = model.encode_image([example["image"] for example in test]) @ model.encode_text(texts).T
    print(f"{name:>6}: {(cosines.argmax(1) == labels).mean():.1%} of {len(test)} right, chance {1 / len(NAMES):.1%}")

# %%
from detailclip_jax.figures import model_figures

shown = model_figures.files([str(FOLDER / "images")], count=6)
model_figures.draw("removal", models, shown, model_figures.Options(ratio=0.25))["removal"]
