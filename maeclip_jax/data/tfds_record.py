"""From the bytes of one stored TFDS example to a record, without TensorFlow and without decoding pictures.

TFDS's own numpy reader costs 100-280 us a record, more than decoding a small picture does. The features that
image-text data sets are made of (pictures, strings, numbers, lists of them) are read here straight from the protocol
buffer in about 20 us; the rest goes through TFDS, so every feature can be read and only unusual ones are slow.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from maeclip_jax.errors import unknown

# record name -> features that hold it, first match wins. Layouts: this project's builders, coco_captions
# (captions/text, image/filename), laion400m (caption), imagenet2012 (file_name), cifar10 (id), oxford_iiit_pet
# (segmentation_mask), scene_parse150 (annotation).
NAMES = {
    "key": ("key", "image/filename", "image/file_name", "file_name", "filename", "id"),
    "texts": ("texts", "captions/text", "captions", "caption"),
    "mask": ("mask", "segmentation_mask", "annotation"),
}


class Reader:
    """`reader(example_bytes) -> record`. Features keep their own name unless NAMES or `renamed` says otherwise.

    Nested features become nested dicts; sequences become lists (of numbers: arrays). Pictures stay encoded, strings are
    str, `texts` is always a list of str; what TFDS has to decode stays as TFDS gives it. A feature renamed to None is
    not read. Raises UserError when `renamed` names a feature that is not there.
    """

    def __init__(self, features, renamed: dict[str, str | None]):
        from tensorflow_datasets.proto import tf_example_pb2

        self._parse = tf_example_pb2.Example.FromString
        plan, slow = _plan(features)
        self._readers = {"/".join(place): reader for place, reader in plan.items()}
        places = {"/".join(place): place for place in plan}
        self._classes = {"/".join(k): names for k, f in _leaves(features) if (names := _names(f)) is not None}
        self._shapes = _shapes_of_scenes(features)
        self._renamed: dict[str, str] = {}
        for name, path in renamed.items():
            if path is None:
                places = {p: place for p, place in places.items() if name not in (p, place[0])}
            elif path not in self._readers:
                raise unknown(f"feature for {name!r}:", path, sorted(self._readers))
            else:
                self._renamed[name] = path
        for name, candidates in NAMES.items():
            found = next((c for c in candidates if c in places), None)
            if found and name not in self._renamed:
                self._renamed[name] = found
        taken = set(self._renamed.values())
        hidden = taken | set(self._renamed)  # a feature gives way to another one that takes its name
        self._rest = [(path, place) for path, place in places.items() if path not in hidden]
        needed = {place[0] for place in places.values()} | {path.partition("/")[0] for path in taken}
        self._slow = slow if slow and needed & set(slow) else None

    @property
    def classes(self) -> list[str] | None:
        label = next((n for n in ("label", "labels") if self._renamed.get(n, n) in self._classes), "label")
        names = self._classes.get(self._renamed.get(label, label))
        return list(names) if names else None

    @property
    def mask_classes(self) -> list[str] | None:
        """Names of the ids of `mask`; None where they are only counted. For `scenes`, of those of object_classes."""
        if self._shapes and self.classes:
            return ["background", *self.classes]
        names = self._classes.get(self._renamed.get("mask", "mask"))
        return list(names) if names and names != [str(i) for i in range(len(names))] else None

    def __call__(self, example: bytes) -> dict:
        stored = self._parse(example).features.feature
        slow = _decode_slow(self._slow, example) if self._slow is not None else {}
        record: dict[str, Any] = {}
        for name, path in self._renamed.items():
            record[name] = self._readers[path](stored, slow)
        for path, (*parents, leaf) in self._rest:
            value, where = self._readers[path](stored, slow), record
            for parent in parents:
                where = where.setdefault(parent, {})
            where[leaf] = value
        if self._shapes and "objects" in record:
            things = record["objects"]
            record["object_class"] = things["colour"] * self._shapes + things["shape"]
        if "key" in record:
            record["key"] = str(record["key"])
        if isinstance(record.get("texts"), str):
            record["texts"] = [record["texts"]]
        return record


def _names(feature) -> list[str] | None:
    """Class names of a feature, or of the members of a sequence. A feature may have no names, or not know them yet."""
    try:
        return feature.names
    except (AttributeError, TypeError):
        return None


def _shapes_of_scenes(features) -> int:
    """Number of shapes where objects have a colour and a shape with names, as in `scenes`; else 0.

    The class of an object is then colour * shapes + shape.
    """
    things = getattr(dict(features.items()).get("objects"), "feature", None)
    parts = dict(things.items()) if hasattr(things, "items") else {}
    shapes, colours = (_names(parts.get(part)) for part in ("shape", "colour"))
    return len(shapes) if shapes and colours else 0


def _leaves(features, above: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    """(place, feature) of every leaf of a FeaturesDict; a place is a tuple, for names may hold a slash themselves."""
    import tensorflow_datasets as tfds

    leaves = []
    for name, child in features.items():
        nested = isinstance(child, tfds.features.FeaturesDict)
        leaves += _leaves(child, (*above, name)) if nested else [((*above, name), child)]
    return leaves


def _plan(features) -> tuple[dict[tuple[str, ...], Callable], Any]:
    """A reader `(stored, slow) -> value` for each place, and the FeaturesDict of what TFDS must decode (or None)."""
    import tensorflow_datasets as tfds

    readers: dict[tuple[str, ...], Callable] = {}
    slow: dict[str, Any] = {}
    for place, feature in _leaves(features):
        parts, many = [(place, feature)], isinstance(feature, tfds.features.Sequence)
        if many:
            nested = isinstance(feature.feature, tfds.features.FeaturesDict)
            parts = _leaves(feature.feature, place) if nested else [(place, feature.feature)]
        plans = {part: _fast("/".join(part), f, many) for part, f in parts}
        if all(plans.values()):
            readers |= plans
        else:  # a sequence is read in one way or the other, not half and half
            slow[place[0]] = features[place[0]]
            readers[place] = lambda _, decoded, place=place: functools.reduce(lambda d, k: d[k], place, decoded)
    return readers, tfds.features.FeaturesDict(slow) if slow else None


def _fast(path: str, feature, many: bool) -> Callable | None:
    """Reader of one feature that is stored as plain values; None where TFDS has an encoding of its own."""
    import tensorflow_datasets as tfds

    if isinstance(feature, tfds.features.Image):
        if many:
            return lambda stored, _: list(stored[path].bytes_list.value)
        return lambda stored, _: stored[path].bytes_list.value[0]
    if isinstance(feature, tfds.features.Text):
        if many:
            return lambda stored, _: [v.decode("utf-8", "replace") for v in stored[path].bytes_list.value]
        return lambda stored, _: stored[path].bytes_list.value[0].decode("utf-8", "replace")
    if not isinstance(feature, tfds.features.Tensor):
        return None
    info, kept = feature.get_tensor_info(), feature.get_serialized_info()
    dtype, shape = np.dtype(info.np_dtype), tuple(info.shape)
    if dtype.kind not in "biuf" or dtype == np.uint64 or info.np_dtype != kept.np_dtype or None in shape:
        return None
    field = "float_list" if dtype.kind == "f" else "int64_list"
    if many or shape:
        full = ((-1, *shape) if many else shape) if shape else (-1,)
        return lambda stored, _: np.array(getattr(stored[path], field).value, dtype).reshape(full)
    scalar = {"b": bool, "f": float}.get(dtype.kind, int)
    return lambda stored, _: scalar(getattr(stored[path], field).value[0])


def _decode_slow(features, example: bytes) -> dict:
    import tensorflow_datasets as tfds

    skip = tfds.decode.SkipDecoding()
    decoders = {k: skip for k, f in features.items() if isinstance(f, tfds.features.Image)}
    return features.deserialize_example_np(example, decoders=decoders)
