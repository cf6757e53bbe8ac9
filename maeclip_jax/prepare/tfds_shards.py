"""The rule of `packing` for the builders of TFDS."""

from __future__ import annotations

import tensorflow_datasets as tfds
from tensorflow_datasets.core.utils import shard_utils

from maeclip_jax.prepare import packing

# Beam puts a record into the shard that the hash of its key names. A mean of 10 blocks leaves all with 8 or more.
_LEAST_HASHED = packing.RECORDS * 10 // 8


class Rule(shard_utils.ShardConfig):
    """`packing.count` in the form that TFDS asks for."""

    def get_number_shards(self, total_size: int, num_examples: int, uses_precise_sharding: bool = True) -> int:
        least = packing.RECORDS if uses_precise_sharding else _LEAST_HASHED
        return self.num_shards or packing.count(num_examples, total_size, least)


class DownloadConfig(tfds.download.DownloadConfig):
    """TFDS's options of a build, whose shards follow `packing.count` unless `num_shards` says how many."""

    def get_shard_config(self) -> Rule:
        return Rule(num_shards=self.num_shards)
