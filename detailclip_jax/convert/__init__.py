"""Converts data sets to ArrayRecord shards in one pass.

`sources` is the table of readers; `passes` has one function per input shard (`split`) and one per output shard
(`gather`), which any engine may run in any order; `job` defines what is converted and where to.
"""
