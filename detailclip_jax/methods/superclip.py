"""SuperCLIP: CLIP with the term `token_set`, by which the image predicts which tokens its captions have.

    L = L_CLIP + L_set          (arXiv 2512.14480)

The term is in `methods.token_set`.
"""

import dataclasses

from ml_collections import ConfigDict

from detailclip_jax.methods.clip import clip
from detailclip_jax.methods.method import Method
from detailclip_jax.renamed import former_names

__getattr__ = former_names(__name__)


def superclip(config: ConfigDict) -> Method:
    """Builds the method `superclip`: `clip`, to which `losses.weights.token_set` adds the term."""
    return dataclasses.replace(clip(config), name="superclip", native=False)
