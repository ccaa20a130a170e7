"""Runs the two passes on Apache Beam: locally with DirectRunner, or on Dataflow, Flink or Spark.

    python -m detailclip_jax.prepare ... --engine beam -- --runner=DirectRunner --direct_num_workers=4

It calls the same functions on the same files as the local engine, so the output is identical, byte for byte.  Every
worker must see the source and the output folder under the same paths.
"""

import importlib
from collections.abc import Sequence
from typing import Any

from detailclip_jax.convert import job as jobs
from detailclip_jax.convert import passes
from detailclip_jax.convert.job import Job


def run(job: Job, options: Sequence[str] = ()) -> None:
    """Runs the unfinished parts of both passes; `options` are Beam's.  ImportError without Beam."""
    beam, pipeline_options = _beam()
    with beam.Pipeline(options=pipeline_options(list(options))) as pipeline:
        build(pipeline, job)


def build(pipeline: Any, job: Job) -> Any:
    """Adds both passes to a Beam pipeline; the second starts when the first is complete.

    The result is the collection of output shard numbers.
    """
    beam, _ = _beam()
    work = str(job.request.work)
    split = (
        pipeline
        | "input shards" >> beam.Create(passes.unsplit(job))
        | "spread the reading" >> beam.Reshuffle()
        | "read" >> beam.Map(_split, work)
        | "all are read" >> beam.combiners.Count.Globally()
    )
    return (
        split
        | "output shards" >> beam.FlatMap(_ungathered, work)
        | "spread the writing" >> beam.Reshuffle()
        | "write" >> beam.Map(_gather, work)
    )


def _split(number: int, work: str) -> int:
    passes.split(jobs.load(work), number)
    return number


def _ungathered(num_split: int, work: str) -> list[int]:
    del num_split
    return passes.ungathered(jobs.load(work))


def _gather(number: int, work: str) -> int:
    passes.gather(jobs.load(work), number)
    return number


def _beam() -> tuple[Any, Any]:
    try:
        beam = importlib.import_module("apache_beam")
        options = importlib.import_module("apache_beam.options.pipeline_options")
    except ImportError as error:
        raise ImportError("--engine beam needs Apache Beam: pip install 'detailclip_jax[beam]'") from error
    return beam, options.PipelineOptions
