"""Converts the shards on Apache Beam: locally with DirectRunner, or on Dataflow, Flink or Spark.

    python -m detailclip_jax.prepare ... --engine beam -- --runner=DirectRunner --direct_num_workers=4

It calls the same functions on the same files as the local engine, so the output is identical, byte for byte.  Every
worker must see the source and the output folder under the same paths.
"""

from collections.abc import Sequence
from typing import Any

from detailclip_jax.convert import job as jobs
from detailclip_jax.convert import output_shard as shards
from detailclip_jax.convert.job import Job
from detailclip_jax.runtime import extras


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
        numbers = pipeline | "shards" >> beam.Create(shards.unconverted(job)) | "spread" >> beam.Reshuffle()
        _ = numbers | "convert" >> beam.Map(_task, str(job.request.work))


def _task(number: int, work: str) -> int:
    shards.convert(jobs.load(work), number)
    return number


def _beam() -> tuple[Any, Any]:
    beam, options = (
        extras.load(name, "--engine beam needs Apache Beam", "beam")
        for name in ("apache_beam", "apache_beam.options.pipeline_options")
    )
    return beam, options.PipelineOptions
