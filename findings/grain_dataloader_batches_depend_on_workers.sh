#!/bin/sh
# grain.DataLoader: how many workers read decides which records share a batch, and how many are dropped.
#
# The sampler, seed and source are the same; each worker fills batches of its own from every worker_count-th record.
# A sampler of 10 records in order, batches of 4: with drop_remainder=True, one worker yields 8 records in order, two
# yield the same 8 in other batches, and three yield 4 records and drop 6. torch's DataLoader makes the same batches
# whatever num_workers is, so a run that is moved to a machine with more cores trains on other batches here.
# worker_count=0 reads in the calling process; with workers absl's flags must have been parsed.
#
# grain 0.2.18, absl-py 2.3.1, numpy 2.3.5, Python 3.11.7, 2026-11-29, seen (batches of records, remainder dropped):
#   worker_count=0: [[0, 1, 2, 3], [4, 5, 6, 7]]
#   worker_count=1: [[0, 1, 2, 3], [4, 5, 6, 7]]
#   worker_count=2: [[0, 2, 4, 6], [1, 3, 5, 7]]
#   worker_count=3: [[0, 3, 6, 9]]
# Fails if the batches no longer depend on worker_count.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q grain==0.2.18 absl-py==2.3.1 numpy==2.3.5
cat > "$folder/read.py" <<'PYTHON'
import grain.python as grain
from absl import flags


def batches(workers, drop):
    loader = grain.DataLoader(
        data_source=grain.RangeDataSource(0, 10, 1),
        sampler=grain.IndexSampler(
            num_records=10, shuffle=False, num_epochs=1, shard_options=grain.NoSharding(), seed=0
        ),
        worker_count=workers,
        operations=[grain.Batch(4, drop_remainder=drop)],
    )
    return [[int(n) for n in batch] for batch in loader]


if __name__ == "__main__":
    flags.FLAGS(["read"])
    found = {workers: batches(workers, drop=True) for workers in (0, 1, 2, 3)}
    for workers, made in found.items():
        print(f"#   worker_count={workers}: {made}")
    assert found[0] == found[1] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert found[2] == [[0, 2, 4, 6], [1, 3, 5, 7]] and found[3] == [[0, 3, 6, 9]]
    assert sorted(sum(batches(3, drop=False), [])) == list(range(10))
PYTHON
"$folder/venv/bin/python" "$folder/read.py"
