"""Sources: where records come from. One switch, `kind`, and one contract.

A source is random access: `source[i]` is record i, a dict with `key` (str), `image` (encoded bytes, or uint8 [H,W,3]
where it is drawn), `texts` (list of str) or `text` (str), and whatever else the data set holds. `len(source)` is the
number of records; an endless source says `endless` and has no order of its own: record i is a pure function of
(its seed, i). `classes` and `mask_classes` name the labels and the ids of masks (None: not known). Any object with
`[]` and `len` may be given instead of a config: a notebook's own list of records, say.

A source whose records are read faster as neighbours has `read(begin, end)`, which gives their bytes, and `record(data,
index)`, which makes a record of them; `remote` says that it lies in a bucket.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from maeclip_jax import remote
from maeclip_jax.data import folder, shards, tfds_record
from maeclip_jax.errors import UserError, choose, unknown

ENDLESS = 2**62  # len() of an endless source: more records than are ever requested


def plain(config) -> Any:
    """A ConfigDict (or any mapping) as a dict of its own; everything else untouched."""
    if hasattr(config, "to_dict"):
        return config.to_dict()
    return dict(config) if isinstance(config, Mapping) else config


def make(config):
    """The source that `config` describes, e.g. `dict(kind="tfds", name="scenes/demo", split="train[:90%]")`.

    Raises UserError for an unknown kind or argument, a data set that is not there, an unknown or empty split.
    """
    config = plain(config)
    if not isinstance(config, dict):
        if hasattr(config, "__getitem__") and hasattr(config, "__len__") and not isinstance(config, str):
            return config
        raise UserError(f"a source is a dict with a kind ({', '.join(sorted(KINDS))}), not {config!r}")
    kind = config.pop("kind", None)
    cls = choose("source kind", kind, KINDS)
    parameters = inspect.signature(cls).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        for name in config:
            if name not in parameters:
                raise unknown(f"argument of source {kind!r}:", name, parameters)
    return cls(**config)


def data_dir(directory: str | None = None) -> str:
    """Where data sets live: `directory`, else $MAECLIP_DATA_DIR, else $TFDS_DATA_DIR, else `data`."""
    found = directory or os.environ.get("MAECLIP_DATA_DIR") or os.environ.get("TFDS_DATA_DIR") or "data"
    remote.check_scheme(found, "the folder of data sets", "records")
    return os.path.expanduser(found)


class TfdsSource:
    """A prepared TFDS data set (ArrayRecord files), read without TensorFlow.

    dir: the folder that holds `name`, or (with an empty name) the folder of one version.
    name: `scenes/demo`, `scenes/demo:1.0.0`; without a version the newest one that is there.
    split: TFDS's language: `train`, `train[:90%]`, `train+test`.
    features: record name -> feature of the data set (`captions/text` for a nested one), where the table
        `tfds_record.NAMES` does not know the layout; None drops a feature.
    """

    endless = False

    def __init__(self, dir: str | None = None, name: str = "", split: str = "train", features=None):
        self._config = {"dir": dir, "name": name, "split": split, "features": plain(features)}
        self.folder = folder.locate(data_dir(dir), name)
        self.remote = remote.is_remote(self.folder)
        builder = folder.builder(self.folder)
        self.name = f"{builder.info.full_name}:{split}"
        folder.check_split(split, builder)
        parts = [part.partition("[")[0].strip() for part in split.split("+")]
        self._splits = sorted(builder.info.splits) if "all" in parts else parts
        self._bytes = sum(builder.info.splits[name].num_bytes or 0 for name in self._splits)  # of whole splits
        self._records = sum(builder.info.splits[name].num_examples for name in self._splits)
        self._reader = tfds_record.Reader(builder.info.features, plain(features) or {})
        pieces = folder.shards(self.folder, builder, split)
        size = sum(piece.take for piece in pieces) * self.record_bytes
        self.held = self.remote and shards.reserve(self, size)
        self._shards = shards.Shards(pieces, folder.version(self.folder), self.held)
        self.parts, self.files = self._shards.parts, len(self._shards.shards)

    @property
    def classes(self) -> list[str] | None:
        """Class names of the label (or labels), where the data set knows them."""
        return self._reader.classes

    @property
    def mask_classes(self) -> list[str] | None:
        """Names of the ids of the mask, where the data set knows them."""
        return self._reader.mask_classes

    @property
    def account(self) -> dict:
        """What tells these splits from others of the same name: records, bytes, and their part of the manifest."""
        splits = json.loads(folder.read(self.folder / "manifest.json") or "{}").get("splits", {})
        files = json.dumps([splits[name] for name in self._splits if name in splits])  # with their SHA-256
        made = hashlib.sha256(files.encode()).hexdigest()[:12] if splits else ""
        return {"name": self.name, "records": len(self), "bytes": self._bytes, "manifest": made}

    @property
    def record_bytes(self) -> float:
        """The mean size of a record, of whole splits."""
        return self._bytes / max(1, self._records)

    def __len__(self) -> int:
        return len(self._shards)

    def __getitem__(self, index: int) -> dict:
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)} of {self.name}")
        return self.record(self.read(index, index + 1)[0], index)

    def read(self, begin: int, end: int) -> list[bytes]:
        """The bytes of records `begin` to `end`, of each file by one request."""
        return self._shards.read(begin, end)

    def record(self, data: bytes, index: int) -> dict:
        """Record `index`, whose bytes are `data`."""
        record = self._reader(data)
        record.setdefault("key", f"{self.name}/{index}")
        return record

    def __reduce__(self):  # worker processes open their own files
        return make, ({"kind": "tfds", **self._config},)


class SceneSource:
    """Drawn scenes with no end, rendered when asked for: record i is a pure function of (knobs, seed, split, i).

    knobs: the fields of `data.scenes.SceneSpec` (resolution, diversity, ...). count: stop after so many records,
    which makes the source finite (shuffled in epochs, fit for evaluation). truth: "captions", or "all" for what
    `data.scenes.scene` knows (questions, objects, `mask`, ...), which is drawn a little slower. among: of the split
    `classify`, the pictures of "all" classes, of those "seen" in training with these knobs, or of those "unseen".
    """

    def __init__(
        self,
        seed: int = 0,
        split: str = "train",
        count: int | None = None,
        truth: str = "captions",
        among: str = "all",
        **knobs,
    ):
        from maeclip_jax.scenes import SceneSpec, SceneStream, combinations

        fields = [f.name for f in dataclasses.fields(SceneSpec)]
        for name in knobs:
            if name not in fields:
                own = ["seed", "split", "count", "truth", "among"]
                raise unknown("argument of source 'scenes':", name, [*own, *fields])
        if truth not in ("captions", "all"):
            raise unknown("truth of source 'scenes':", truth, ("captions", "all"))
        if count is not None and count < 1:
            raise UserError(f"count of source 'scenes' is {count}; valid: 1 or more, or None for no end")
        spec = SceneSpec(**knobs)
        self.name, self.endless, self.count = f"scenes/{split}-{seed}", count is None, count
        self.classes_of = combinations(spec, among, split)
        self.classes, self.mask_classes = list(spec.classes), ["background", *spec.classes]
        self.stream, self.truth = SceneStream(spec, seed, split), truth

    def __len__(self) -> int:
        return ENDLESS if self.count is None else self.count

    def __getitem__(self, index: int) -> dict:
        if self.classes_of:  # every class of the split has its turn; the others' are passed over
            turn, place = divmod(index, len(self.classes_of))
            index = turn * len(self.classes) + self.classes_of[place]
        record = self.stream[index] if self.truth == "captions" else self.stream.scene(index)
        if "objects" in record:
            of = [f"{thing['colour']} {thing['shape']}" for thing in record["objects"]]
            record["object_class"] = np.array([self.classes.index(name) for name in of], np.int32)
        return {"mask" if name == "masks" else name: value for name, value in record.items()}


class NoiseSource:
    """Random pictures and random words, as fast as memory: the upper bound that a benchmark compares with.

    Pictures are windows into one random buffer, so a record costs microseconds; words are drawn from `vocabulary`
    made-up ones. Record i is a pure function of (seed, i).
    """

    _BUFFER = 1 << 24  # bytes; pictures overlap, which no benchmark can notice

    def __init__(
        self,
        resolution: int = 224,
        words: int = 12,
        vocabulary: int = 1000,
        labels: int = 10,
        seed: int = 0,
        count: int | None = None,
    ):
        self._config = {
            "resolution": resolution,
            "words": words,
            "vocabulary": vocabulary,
            "labels": labels,
            "seed": seed,
            "count": count,
        }
        self.name, self.endless = f"noise(seed={seed})", count is None
        self.classes, self.mask_classes = [f"class {i}" for i in range(labels)], None
        self.__dict__.update(self._config)
        size = max(self._BUFFER, 2 * 3 * resolution**2)
        self._pixels = np.frombuffer(np.random.default_rng(seed).bytes(size), np.uint8)

    def __len__(self) -> int:
        return ENDLESS if self.count is None else self.count

    def __getitem__(self, index: int) -> dict:
        # Multiplication by an odd constant spreads neighbours over the buffer and the vocabulary.
        h = ((index + 1) * 0x9E3779B97F4A7C15 + self.seed) & (2**64 - 1)
        size = 3 * self.resolution**2
        start = (h >> 20) % (len(self._pixels) - size)
        image = self._pixels[start : start + size].reshape(self.resolution, self.resolution, 3)
        text = " ".join(f"w{((h >> 8) * (2 * k + 1) >> 13) % self.vocabulary}" for k in range(self.words))
        return {"key": f"noise/{index}", "image": image, "texts": [text], "label": (h >> 32) % self.labels}

    def __reduce__(self):
        return make, ({"kind": "noise", **self._config},)


def _questions(of, vocabulary=None):
    from maeclip_jax.data.questions import QuestionSource

    return QuestionSource(of, vocabulary)


def _subset(path, dir=None):
    from maeclip_jax.data.subset import SubsetSource

    return SubsetSource(path, dir)


KINDS = {
    "tfds": TfdsSource,
    "scenes": SceneSource,
    "noise": NoiseSource,
    "questions": _questions,
    "subset": _subset,
}
