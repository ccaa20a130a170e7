"""The door to PyTorch: tables of names, used in both directions."""
