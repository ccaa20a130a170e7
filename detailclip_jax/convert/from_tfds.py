"""Reads a set that TensorFlow Datasets prepared as array_record; needs no TensorFlow."""

from collections.abc import Iterator

from detailclip_jax.convert.examples import Raw, Reject
from detailclip_jax.convert.job import PER_SHARD, Options, Plan, Request, Shard, limited
from detailclip_jax.data.sources import BadRecord, TfdsRecords


def plan(request: Request) -> Plan:
    """Divides `tfds:NAME` into ranges of examples; the split is `--subset`, else the output's."""
    name = request.kind.partition(":")[2] or (request.paths[0] if request.paths else "")
    split = request.options.subset or request.split
    records = TfdsRecords(name, split)
    if missing := [column for column in request.options.caption_columns if column not in records.text_fields]:
        raise ValueError(f"{records.name} has no text {', '.join(missing)}; it has {', '.join(records.text_fields)}")
    ranges = [(start, min(start + PER_SHARD, len(records))) for start in range(0, len(records), PER_SHARD)]
    shards = [Shard(f"{split}#{start}", name, start, stop, weight=stop - start) for start, stop in ranges]
    return Plan(limited(shards, lambda shard: shard.stop - shard.start, request.options.limit))


def read(shard: Shard, options: Options) -> Iterator[Raw | Reject]:
    """Yields the examples of a range; caption columns of the options are text fields, whose names are kept."""
    records = TfdsRecords(shard.path, shard.name.partition("#")[0])
    for index in range(shard.start, shard.stop):
        try:
            fields = records[index]
        except BadRecord as error:
            yield Reject(f"{records.name}#{index}", "damaged record", str(error))
            continue
        texts = {name: fields[name] for name in options.caption_columns}
        captions = () if texts else tuple(fields["captions"])
        key = str(fields["key"])
        yield Raw(key, fields["image"], captions, texts, fields["label"], match=key)
