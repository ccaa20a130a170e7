"""The shapes in the package's signatures are checked while its tests run."""

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float, TypeCheckError
from type_checks import annotated

from detailclip_jax.losses import clip


def test_an_array_of_another_shape_or_type_than_the_signature_s_is_refused():
    logits = jnp.zeros((2, 4, 4))
    assert clip.cross_entropy(logits, jnp.arange(4)).shape == (2, 4)
    for pair in (np.arange(5), np.zeros(4, np.float32), np.zeros((4, 1), np.int32)):
        with pytest.raises(TypeCheckError, match="pair"):
            clip.cross_entropy(logits, pair)


def plain(x: int, y: tuple[int, str]): ...


def with_shape(x: Float[Array, "2"]): ...


def with_shapes(x: Mapping[str, Float[Array, "2"] | None]): ...


def test_only_functions_with_shapes_of_arrays_are_checked():
    assert annotated(plain) is plain
    annotated(with_shapes)({"a": jnp.zeros(2), "b": None})
    for function, value in ((with_shape, jnp.zeros(3)), (with_shapes, {"a": jnp.zeros(3)})):
        with pytest.raises(Exception, match="x="):
            annotated(function)(value)
