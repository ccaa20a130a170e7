"""Converts data sets to ArrayRecord shards in one pass.

`sources` is the table of readers; `shard.convert` makes one output shard, on any machine and in any order; `job`
defines what is converted and where to.
"""
