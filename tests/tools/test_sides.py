"""Probes of stated sides: a perfect code is read, and vectors without the side, or without its noun, are not."""

import numpy as np
import sides


def scenes(num=800, nouns=6):
    rng = np.random.default_rng(0)
    places = np.stack([rng.permutation(nouns)[:2] for _ in range(num)]) * 2
    return rng, places, rng.choice([-1.0, 1.0], num)


def test_a_code_of_nouns_and_their_sides_is_read():
    rng, places, signs = scenes()
    code = rng.normal(size=(12, 24))
    vectors = signs[:, None] * (code[places[:, 0]] - code[places[:, 1]])
    assert sides.probe(vectors, places, signs) > 97


def test_nouns_without_sides_and_sides_without_nouns_are_chance():
    rng, places, signs = scenes()
    code = rng.normal(size=(12, 24))
    assert 40 < sides.probe(code[places[:, 0]] + code[places[:, 1]], places, signs) < 60
    word = rng.normal(size=24)  # of "above", in the text whose other is "below"
    assert 40 < sides.probe(signs[:, None] * word + 1e-3 * rng.normal(size=(800, 24)), places, signs) < 60


def test_the_share_of_variance_that_a_linear_map_explains():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(600, 5))
    exact = features @ rng.normal(size=(5, 2)) + 3
    assert sides.explained(features, exact) > 0.999
    assert abs(sides.explained(features, rng.normal(size=(600, 2)))) < 0.1


def test_scenes_have_true_texts_and_places():
    drawn = sides.sided(6)
    assert len(drawn.images) == len(drawn.texts) == 6 and drawn.places.shape == (6, 2)
    for (unary, relation, unary_false, relation_false), sign in zip(drawn.texts, drawn.signs):
        assert unary != unary_false and relation != relation_false
        assert (sign == 1) == any(word in relation for word in ("above", "to the left of"))
