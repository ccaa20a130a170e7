"""The devices of this process, and an error with instructions if jax finds none."""

import os
from typing import Any

import jax


class NoDevice(ValueError):
    """jax finds no device of the platforms in JAX_PLATFORMS; the message says what to do."""


def first_device() -> Any:
    """Returns the first device of this process.  Raises NoDevice if jax finds none."""
    try:
        return jax.local_devices()[0]
    except (RuntimeError, AssertionError) as error:  # AssertionError: jax has no plugin for any of the platforms
        wanted = os.environ.get("JAX_PLATFORMS", "")
        reason = f" ({str(error).splitlines()[0]})" if str(error) else ""
        raise NoDevice(
            f"JAX_PLATFORMS={wanted}: jax finds no such device{reason}; unset JAX_PLATFORMS to use the devices "
            "that exist, or install jax for it: pip install 'jax[cuda13]' (python -m detailclip_jax.doctor lists "
            "the devices)"
        ) from error
