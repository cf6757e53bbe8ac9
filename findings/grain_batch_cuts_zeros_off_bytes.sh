#!/bin/sh
# grain: batch() cuts the zeros off the end of records of bytes.
#
# Records of bytes are stacked by NumPy into an array of its type S, which fills short strings with zero bytes and
# takes all zero bytes at the end for filling. So a record that ends in zeros comes out shorter, whether or not the
# lengths differ: ids of tokens stored as bytes lose the padding (0 in CLIP's and BERT's vocabulary), raw pixels lose
# black at the lower right. torch's default_collate gives a list of whole
# bytes. Whoever batches before decoding pays; decode first, or give batch a batch_fn that makes a list.
#
# grain 0.2.18, numpy 2.4.6, Python 3.11.7, 2026-11-29, seen:
#   ids [49406, 320, 49407, 0, 0, 0] of 12 bytes -> [49406, 320, 49407], 6 bytes; alone in a batch: 6 bytes
#   ids [1, 2, 256] of little-endian 16 bits -> 6 bytes, and [1, 2, 3] -> 5 bytes of 6, no whole ids
#   a black picture of 12 bytes -> 0 bytes
#   with batch_fn=list: [12, 6, 6, 12] bytes
# Fails if bytes come out of a batch as they went in.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --no-compile grain==0.2.18 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import grain
import numpy as np


def encoded(*ids):
    return np.array(ids, "<u2").tobytes()


records = [encoded(49406, 320, 49407, 0, 0, 0), encoded(1, 2, 256), encoded(1, 2, 3), bytes(12)]
[batch] = grain.MapDataset.source(records).batch(4)
[alone] = grain.MapDataset.source(records[:1]).batch(1)
[whole] = grain.MapDataset.source(records).batch(4, batch_fn=list)
padded, top, small, black = batch
ids = np.frombuffer(padded, "<u2").tolist()
print(f"#   ids [49406, 320, 49407, 0, 0, 0] of 12 bytes -> {ids}, {len(padded)} bytes; alone in a batch: {len(alone[0])} bytes")
print(f"#   ids [1, 2, 256] of little-endian 16 bits -> {len(top)} bytes, and [1, 2, 3] -> {len(small)} bytes of 6, no whole ids")
print(f"#   a black picture of 12 bytes -> {len(black)} bytes")
print(f"#   with batch_fn=list: {[len(x) for x in whole]} bytes")
assert ids == [49406, 320, 49407] and len(alone[0]) == 6
assert (len(top), len(small), len(black)) == (6, 5, 0)
assert whole == records
PYTHON
