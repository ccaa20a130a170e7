"""The door to PyTorch: tables of names, used in both directions.

model, variables, config = interop.load("checkpoint.pt")          # layout and sizes are told by names and shapes
state_dict = interop.to_state_dict(variables, config, "timm")
"""

from detailclip_jax.interop.convert import NAMES, load, to_state_dict

__all__ = ["NAMES", "load", "to_state_dict"]
