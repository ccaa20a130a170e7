"""From the sources people have to ArrayRecord shards, in two pure passes.

`sources` is the table of readers; `passes` has one function per input shard (`split`) and one per output shard
(`gather`), which any engine may run in any order; `job` says what they work on and where.
"""
