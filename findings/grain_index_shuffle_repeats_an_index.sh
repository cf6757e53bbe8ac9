#!/bin/sh
# grain: index_shuffle is no permutation of 2^16 + 1, 2^18 + 1, ... records.
#
# Where max_index is 2^16, 2^18, ..., its cipher has a bit too few for max_index itself: that goes where 0 goes, and one
# record is never read. MapDataset.shuffle uses it, and does the same. Of other lengths, all that were tried are
# permutations. Whoever has such a length can permute one index more and walk past it: shuffle again what lands on it.
#
# grain 0.2.18, Python 3.11.7, 2026-11-30, seen:
#   of 65536 records 0 are lost; of 65537 records 1 are lost (65536); of 65538 records 0 are lost
#   of 131072 records 0 are lost; of 131073 records 0 are lost; of 131074 records 0 are lost
#   of 262144 records 0 are lost; of 262145 records 1 are lost (262144); of 262146 records 0 are lost
#   the first and the last index meet for 2 to the 16, 18, 20, 22, 24, 26, 28, 30
#   MapDataset.range(65537).shuffle() reads 65536 different records in an epoch
#   with one index more, walked past: 0 are lost
# Fails if these lengths are permutations, or if the walk makes none of them.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --no-compile grain==0.2.18 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import grain
from grain.experimental import index_shuffle


def shuffled(index, length):
    return index_shuffle(index, max_index=length - 1, seed=1, rounds=4)


def walked(index, length):
    place = shuffled(index, length + 1)
    return place if place < length else shuffled(place, length + 1)


def missing(length, function):
    return sorted(set(range(length)) - {function(i, length) for i in range(length)})


for bits in (16, 17, 18):
    lost = {2**bits + more: missing(2**bits + more, shuffled) for more in (0, 1, 2)}
    said = [f"of {n} records {len(of)} are lost{f' ({of[0]})' if of else ''}" for n, of in lost.items()]
    print("#  ", "; ".join(said))
    assert lost == {2**bits: [], 2**bits + 1: [2**bits] * (bits % 2 == 0), 2**bits + 2: []}
ends = {bits: shuffled(2**bits, 2**bits + 1) == shuffled(0, 2**bits + 1) for bits in range(16, 32)}
print(f"#   the first and the last index meet for 2 to the {', '.join(str(bits) for bits, met in ends.items() if met)}")
assert [bits for bits, met in ends.items() if met] == list(range(16, 32, 2))
length = 2**16 + 1
dataset = grain.MapDataset.range(length).seed(1).shuffle()
read = len({dataset[i] for i in range(length)})
print(f"#   MapDataset.range({length}).shuffle() reads {read} different records in an epoch")
assert read == length - 1
print(f"#   with one index more, walked past: {len(missing(length, walked))} are lost")
assert not missing(length, walked)
PYTHON
