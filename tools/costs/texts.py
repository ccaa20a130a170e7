"""Benchmarks the text encoder in evaluation: texts per second with all tokens, and cut to what each text needs."""

import argparse
import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Int

from detailclip_jax.benchmarks import cost_table, counting, timing
from detailclip_jax.benchmarks.step import make_mesh
from detailclip_jax.benchmarks.variants import Variant
from detailclip_jax.evaluation.embedder import BATCH_SIZE
from detailclip_jax.inference.batching import embed_texts
from detailclip_jax.runtime.progress import Console
from detailclip_jax.training import experiment as experiments
from detailclip_jax.training import mesh as meshes

LENGTHS = (5, 15)  # tokens of a text, with start and end: from the shortest to the longest


def run(variant: Variant, devices: Sequence[Any], arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Measures both in alternation, prints the table, and returns the records for JSON.

    Raises ValueError for a method without captions.
    """
    console, config = Console(stream=arguments.progress), variant.config
    experiment = experiments.build(config, make_mesh(variant, devices))
    if not experiment.method.has_text:
        raise ValueError(f"{config.method} has no text encoder")
    drawn = jax.tree.map(lambda x: 0.05 * x, counting.noise(experiment.state_shapes.params))
    params = meshes.replicate(drawn, experiment.mesh)
    tokens = example_tokens(arguments.num_texts, config.model.context_length, config.model.vocab_size)
    encoders = {"all tokens": experiment.encode._replace(text_lengths=()), "cut": experiment.encode}
    calls = [functools.partial(embed_texts, encode, params, tokens, BATCH_SIZE) for encode in encoders.values()]
    console.live("compiling")
    for call in calls:
        call()
    times = timing.interleaved(calls, arguments.rounds, report=timing.reporter(console, arguments.rounds))
    console.end_live()
    rates = [timing.median_range([len(tokens) / seconds for seconds in row]) for row in times]
    faster = timing.ratios(*times)
    rows = [["texts/s", *encoders], [f"{config.model.size}, {config.model.context_length} tokens", *map(str, rates)]]
    print(f"{cost_table.table(rows)}\n\ncut is {faster} times as fast, measured in turn")
    found = dict(zip(encoders, map(list, rates)))
    return [{"command": "texts", "texts_per_second": found, "times_as_fast": list(faster)}]


def example_tokens(count: int, context: int, vocabulary: int) -> Int[np.ndarray, "M T"]:
    """Texts of random tokens and lengths, see `LENGTHS`; the end token is the largest id, zeros follow."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(min(LENGTHS[0], context), min(LENGTHS[1], context) + 1, count)
    tokens = rng.integers(1, vocabulary - 2, (count, context)).astype(np.int32)
    tokens[np.arange(context) >= lengths[:, None]] = 0
    tokens[np.arange(count), lengths - 1] = vocabulary - 1
    return tokens
