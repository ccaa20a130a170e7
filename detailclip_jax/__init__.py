"""DetailCLIP (arXiv 2409.06809) and the methods it compares with, in JAX/Flax.

    import detailclip_jax

    config = detailclip_jax.default()            # every field, with the paper's run as values
    config.total_steps = 1000
    experiment = detailclip_jax.build(config)    # method, networks, optimiser, mesh, compiled step
    experiment.terms(experiment.init(0), experiment.put(batch))     # the loss terms; `record`: what they read
    model = detailclip_jax.load("runs/stickers")    # the last checkpoint of a run
    model.encode_image([image]) @ model.encode_text(["a frog"]).T
    model.classify([image], ["frog", ["bus", "coach"]], ["a photo of a {}."])
    detailclip_jax.load("runs/coco_cascade").detect(image)       # after transfer
    detailclip_jax.load("runs/ade20k_upernet").segment(image)

Public names are imported at their first use, which keeps `import detailclip_jax` fast.
"""

import os
import sys

# Where a command starts, Ctrl-C ends it without a traceback from here on, until `runtime.signals` takes over.
if (sys.argv and os.path.basename(sys.argv[0]) == "detailclip") or (
    sys.argv[:1] == ["-m"] and sys.orig_argv[-len(sys.argv)].startswith(__name__)  # "-m" until Python has the module
):
    try:
        import signal

        signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    except KeyboardInterrupt:
        os._exit(130)

import importlib
from typing import Any

from detailclip_jax.renamed import FormerModules
from detailclip_jax.version import __version__

sys.meta_path.append(FormerModules())

_PUBLIC = {
    "METHODS": "detailclip_jax.methods",
    "Experiment": "detailclip_jax.training.experiment",
    "Forward": "detailclip_jax.methods.method",
    "Keys": "detailclip_jax.types",
    "Method": "detailclip_jax.methods.method",
    "Model": "detailclip_jax.inference.model",
    "SIZES": "detailclip_jax.config.sizes",
    "Stickers": "detailclip_jax.data.stickers.scene_source",
    "Tokenizer": "detailclip_jax.data.tokenizer",
    "TrainState": "detailclip_jax.training.train_state",
    "build": "detailclip_jax.training.experiment",
    "default": "detailclip_jax.config",
    "load": "detailclip_jax.dense.predictions",
    "make_keys": "detailclip_jax.training.forward_pass",
    "weights": "detailclip_jax.training.train_state",
}

__all__ = ["__version__", *_PUBLIC]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    """Imports a public name from the module that defines it; AttributeError with the public names otherwise."""
    if name not in _PUBLIC:
        raise AttributeError(f"detailclip_jax has no {name!r}; public names: {', '.join(__all__)}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    """Lists all public names, including those not imported yet, for completion."""
    return sorted({*globals(), *__all__})
