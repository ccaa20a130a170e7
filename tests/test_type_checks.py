"""The shapes in the package's signatures are checked while its tests run."""

from typing import Any

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


def typed(x: int, y: Any): ...


def plain(x: Any, y: Any): ...


def test_functions_without_annotations_are_left_as_they_are():
    assert annotated(plain) is plain
    with pytest.raises(Exception, match="x="):
        annotated(typed)("a", 1)


def test_a_nested_function_is_checked_if_an_array_has_its_shape_there():
    def nested(x: int): ...

    def with_shape(x: Float[Array, "2"]): ...

    assert annotated(nested) is nested
    with pytest.raises(Exception, match="x="):
        annotated(with_shape)(jnp.zeros(3))
