"""Reads a set that TensorFlow Datasets prepared as array_record; needs no TensorFlow."""

from collections.abc import Iterator, Sequence

from detailclip_jax.convert.examples import Raw, Reject
from detailclip_jax.convert.job import Options, Plan, Request, Shard, limited, of_count
from detailclip_jax.data.sources import BadRecord, TfdsRecords


def plan(request: Request) -> Plan:
    """Divides `tfds:NAME` into ranges of examples; the split is `--subset`, else the output's."""
    name = request.kind.partition(":")[2] or (request.paths[0] if request.paths else "")
    split = request.options.subset or request.split
    records = TfdsRecords(name, split)
    if missing := [column for column in request.options.caption_columns if column not in records.text_fields]:
        raise ValueError(f"{records.name} has no text {', '.join(missing)}; it has {', '.join(records.text_fields)}")
    shards = of_count(split, name, len(records))
    return Plan(limited(shards, lambda shard: shard.stop - shard.start, request.options.limit))


def read(shard: Shard, options: Options) -> Iterator[Raw | Reject]:
    """Yields the examples of a range; caption columns of the options are text fields, whose names are kept."""
    records = TfdsRecords(shard.path, shard.name.partition("#")[0])
    for index in range(shard.start, shard.stop):
        yield _example(records, index, options.caption_columns)


def _example(records: TfdsRecords, index: int, names: Sequence[str]) -> Raw | Reject:
    try:
        fields = records[index]
    except BadRecord as error:
        return Reject(f"{records.name}#{index}", "damaged record", str(error))
    texts = {name: fields[name] for name in names}
    captions = () if texts else tuple(fields["captions"])
    key = str(fields["key"])
    return Raw(key, fields["image"], captions, texts, fields["label"], match=key)
