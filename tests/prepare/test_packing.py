import numpy as np
import pytest
import tensorflow_datasets as tfds

from maeclip_jax.data import blocks
from maeclip_jax.prepare import packing, tfds_shards

MB, GB = 10**6, 10**9


@pytest.mark.parametrize(
    ("records", "size", "expected"),
    [
        (0, 0, 1),
        (24_048, 48 * MB, 1),  # the demo: too small for two
        (100_000, 2 * GB, 31),
        (3_300_000, 64 * GB, 1000),
        (12_000_000, 240 * GB, 1024),  # CC12M: 234 MB each
        (1_400_000_000, 28_000 * GB, 109_375),  # DataComp: 256 MB each
        (600, 10 * GB, 1),  # eight blocks come before the size
        (1024, 10 * GB, 2),
        (10**9, 128 * MB, 2),  # records that are nearly nothing
    ],
)
def test_the_number_of_shards(records, size, expected):
    assert packing.count(records, size) == expected


def test_shards_have_64_to_256_mb_or_eight_blocks():
    rng = np.random.default_rng(0)
    for size, mean in zip(10 ** rng.uniform(4, 14, 2000), 10 ** rng.uniform(1, 7, 2000)):
        records, size = max(1, int(size / mean)), int(size)
        number = packing.count(records, size)
        lengths = np.diff([0, *packing.ends(records, number)]) if number < 3000 else np.array([records // number])
        if number > 1:
            assert lengths.min() >= packing.RECORDS and size / number >= packing.SMALLEST
        assert size / number <= packing.LARGEST or records // (number + 1) < packing.RECORDS
    assert 8 * blocks.settings({}, 64).size == packing.RECORDS


def test_shards_take_the_records_of_all_files_in_order(monkeypatch):
    monkeypatch.setattr(packing, "count", lambda records, size: 3)
    parts = [packing.Part("a", 5, 500), packing.Part("b", 0, 0), packing.Part("c", 1, 100), packing.Part("d", 4, 400)]
    found = packing.shards("name", "train", parts)
    assert [s.pieces for s in found] == [(("a", 0, 3),), (("a", 3, 5), ("c", 0, 1), ("d", 0, 1)), (("d", 1, 4),)]
    assert [s.records for s in found] == [3, 4, 3] and found[0].record_bytes == 100
    assert found[2].file == "name-train.array_record-00002-of-00003"


def test_builders_of_tfds_follow_the_rule(tmp_path, monkeypatch):
    monkeypatch.setattr(packing, "SMALLEST", 1000)

    class Set(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({"x": np.int64}))

        def _split_generators(self, dl_manager):
            return {"train": ((i, {"x": i}) for i in range(1700))}

        def _generate_examples(self):
            raise NotImplementedError

    made = Set(data_dir=str(tmp_path), file_format="array_record")
    made.download_and_prepare(download_config=tfds_shards.DownloadConfig())
    assert made.info.splits["train"].shard_lengths == [567, 566, 567]
    rule = tfds_shards.DownloadConfig(num_shards=7).get_shard_config()
    assert rule.get_number_shards(1, 1) == 7
    hashed = tfds_shards.Rule().get_number_shards(10**9, 1700, uses_precise_sharding=False)
    assert hashed == 2  # Beam's shards are of about equal length only
