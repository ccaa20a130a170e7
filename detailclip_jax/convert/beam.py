"""Converts the shards on Apache Beam: locally with DirectRunner, or on Dataflow, Flink or Spark.

    python -m detailclip_jax.prepare ... --engine beam -- --runner=DirectRunner --direct_num_workers=4

It calls the same functions on the same files as the local engine, so the output is identical, byte for byte.  Every
worker must see the source and the output folder under the same paths.
"""

import importlib
from collections.abc import Sequence
from typing import Any

from detailclip_jax.convert import job as jobs
from detailclip_jax.convert import shard as shards
from detailclip_jax.convert.job import Job


def run(job: Job, options: Sequence[str] = ()) -> None:
    """Converts the unconverted shards, and once more those that repeat keys; `options` are Beam's.

    Raises ImportError without Beam.
    """
    _convert(job, options)
    while shards.exclude_repeated(job):
        _convert(job, options)


def _convert(job: Job, options: Sequence[str]) -> None:
    beam, pipeline_options = _beam()
    with beam.Pipeline(options=pipeline_options(list(options))) as pipeline:
        build(pipeline, job)


def build(pipeline: Any, job: Job) -> Any:
    """Adds the conversion to a Beam pipeline.  The result is the collection of numbers of the converted shards."""
    beam, _ = _beam()
    return (
        pipeline
        | "shards" >> beam.Create(shards.unconverted(job))
        | "spread" >> beam.Reshuffle()
        | "convert" >> beam.Map(_task, str(job.request.work))
    )


def _task(number: int, work: str) -> int:
    shards.convert(jobs.load(work), number)
    return number


def _beam() -> tuple[Any, Any]:
    try:
        beam = importlib.import_module("apache_beam")
        options = importlib.import_module("apache_beam.options.pipeline_options")
    except ImportError as error:
        raise ImportError("--engine beam needs Apache Beam: pip install 'detailclip_jax[beam]'") from error
    return beam, options.PipelineOptions
