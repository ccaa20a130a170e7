"""Conversion from and to PyTorch, by tables of parameter names that serve both directions.

model, variables, config = interop.load("checkpoint.pt")    # layout and sizes are inferred from names and shapes
state_dict = interop.to_state_dict(variables, config, "timm")
"""

from detailclip_jax.interop.state_dicts import NAMES, load, to_state_dict

__all__ = ["NAMES", "load", "to_state_dict"]
