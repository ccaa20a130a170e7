"""The command `prepare`: see `python -m detailclip_jax.prepare --help`; what it does stands in `data.prepare`."""
