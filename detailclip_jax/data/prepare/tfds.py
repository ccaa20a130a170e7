"""Reads a set that TensorFlow Datasets prepared as array_record; needs no TensorFlow."""

from collections.abc import Iterator

from detailclip_jax.data.prepare.job import Options, Request, Shard
from detailclip_jax.data.prepare.plan import Plan, limited, of_count
from detailclip_jax.data.prepare.records import Raw, Reject
from detailclip_jax.data.sources import BadRecord, TfdsRecords


def plan(request: Request) -> Plan:
    """Divides `tfds:NAME` into ranges of examples; the split is `--subset`, else the output's."""
    name = request.kind.partition(":")[2] or (request.paths[0] if request.paths else "")
    split = request.options.subset or request.split
    shards = of_count(split, name, len(TfdsRecords(name, split)))
    return Plan(limited(shards, lambda shard: shard.stop - shard.start, request.options.limit))


def read(shard: Shard, options: Options) -> Iterator[Raw | Reject]:
    """Yields the examples of a range."""
    del options
    records = TfdsRecords(shard.path, shard.name.partition("#")[0])
    for index in range(shard.start, shard.stop):
        yield _example(records, index)


def _example(records: TfdsRecords, index: int) -> Raw | Reject:
    try:
        fields = records[index]
    except BadRecord as error:
        return Reject(f"{records.name}#{index}", "damaged record", str(error))
    return Raw(str(fields["key"]), fields["image"], tuple(fields["captions"]), label=fields["label"])
