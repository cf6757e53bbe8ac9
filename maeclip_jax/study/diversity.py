"""What a data set really holds: unique pictures, captions and words, and the entropy of combinations or clusters."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from maeclip_jax.data.ahead import scan


def measure(made: Any, *, most: int | None = None, clusters_N: np.ndarray | None = None) -> dict[str, Any]:
    """What the records of a source hold; of an endless one or a large one, its first `most`.

    clusters_N: the cluster of each record of the source, where they are known. Returns records, pairs (unique pictures
    with their captions), pictures, captions, words (unique, and those that occur once), and for the combinations of
    colour and shape of drawn scenes, for labels and for clusters how many there are and their entropy in bits.

    Memory: 16 bytes a picture and a caption, as hashes.
    """
    size = min(len(made), most or len(made))
    pictures, captions, pairs, words = set(), set(), set(), Counter()
    counts = {"combinations": Counter(), "labels": Counter(), "clusters": Counter()}
    for record in scan(made, range(size)):
        texts = texts_of(record)
        picture = digest(record["image"]) if "image" in record else b""
        pictures.add(picture)
        pairs.add(digest(picture + "\n".join(texts).encode()))
        for text in texts:
            captions.add(digest(text.encode()))
            words.update(re.findall(r"\w+", text.lower()))
        counts["combinations"].update(np.ravel(record.get("object_class", ())).tolist())
        if "label" in record and int(np.max(record["label"])) >= 0:
            counts["labels"][int(np.max(record["label"]))] += 1
    if clusters_N is not None:
        counts["clusters"].update(np.asarray(clusters_N[:size]).tolist())
    found = {
        "records": size, "unique pairs": len(pairs), "unique pictures": len(pictures),
        "unique captions": len(captions), "unique words": len(words),
        "words that occur once": sum(n == 1 for n in words.values()),
    }  # fmt: skip
    for name, of in counts.items():
        if of:
            found |= {name: len(of), f"entropy of {name} (bits)": entropy(of.values())}
    return found


def overlap(made: Any, others: Mapping[str, Any], *, most: int | None = None) -> dict[str, dict[str, int]]:
    """{name: how many records of another source have a picture, or a caption, of `made` bit by bit}."""
    pictures, captions = set(), set()
    for record in scan(made, range(min(len(made), most or len(made)))):
        pictures.add(digest(record.get("image", b"")))
        captions |= {digest(text.lower().encode()) for text in texts_of(record)}
    found = {}
    for name, other in others.items():
        both = Counter(records=0, pictures=0, captions=0)
        for record in scan(other):
            both["records"] += 1
            both["pictures"] += digest(record["image"]) in pictures
            both["captions"] += any(digest(t.lower().encode()) in captions for t in texts_of(record))
        found[name] = dict(both)
    return found


def entropy(counts: Iterable[float]) -> float:
    """In bits; log2 of the number of kinds where all are equally frequent."""
    share = np.array([n for n in counts if n], np.float64)
    share /= share.sum()
    return float(abs(-(share * np.log2(share)).sum()))


def digest(value: Any) -> bytes:
    """16 bytes of a picture's or a text's content."""
    data = np.ascontiguousarray(value).tobytes() if isinstance(value, np.ndarray) else bytes(value)
    return hashlib.blake2b(data, digest_size=16).digest()


def texts_of(record: Mapping) -> list[str]:
    """All captions of a record."""
    texts = record.get("texts")
    if texts is None:
        texts = [record["text"]] if "text" in record else []
    return [str(text) for text in texts]
