"""Converts data sets to ArrayRecord shards in one pass.

`readers` is the table of sources; `output_shard.convert` makes one output shard, on any machine and in any order; `job`
defines what is converted and where to.
"""
