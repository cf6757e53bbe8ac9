"""What a metric is the mean of: one value for each item (picture, caption, question), for intervals and comparisons.

Items are kept in evals/<step>.items.parquet, all metrics of a step below one another. Its columns:

    metric   str    "zero_shot/top1"
    item     str    key of the record, or what stands for it
    group    str    items of one group are drawn together (the captions of a picture); null: every item is on its own
    stratum  str    the metric is the mean over strata of the means within them (the classes of mean IoU); null: one
    value    float  in the metric's unit
    weight   float  how much the item counts; null: all alike
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

COLUMNS = ("metric", "item", "group", "stratum", "value", "weight")


@dataclasses.dataclass(frozen=True)
class Items:
    """`value` float [N] in the metric's unit; `key`: N texts, all different within a stratum.

    `group`: what is drawn together; `stratum`, `weight` [N]: the metric is the mean over strata of
    sum(weight * value) / sum(weight).
    """

    value: np.ndarray
    key: Sequence[str] | None = None
    group: Sequence[str] | None = None
    stratum: Sequence[str] | None = None
    weight: np.ndarray | None = None

    def __post_init__(self):
        object.__setattr__(self, "value", np.asarray(self.value, np.float64))
        keys = range(len(self.value)) if self.key is None else self.key
        for name, column in (("key", keys), ("group", self.group), ("stratum", self.stratum)):
            if column is not None:
                object.__setattr__(self, name, np.array([str(x) for x in column], object))
        if self.weight is not None:
            object.__setattr__(self, "weight", np.asarray(self.weight, np.float64))
        for name in ("key", "group", "stratum", "weight"):
            column = getattr(self, name)
            if column is not None and len(column) != len(self.value):
                raise ValueError(f"items: {len(self.value)} values and {len(column)} of {name}")

    def __len__(self) -> int:
        return len(self.value)

    @property
    def units(self) -> np.ndarray:
        """[N]: what is drawn, the group or the item itself."""
        return self.key if self.group is None else self.group

    def sums(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(names [U] of the units, sum of weight * value [U, S], sum of weights [U, S]), by unit and stratum."""
        names, unit_N = np.unique(self.units.astype(str), return_inverse=True)
        strata = np.zeros(len(self), int)
        if self.stratum is not None:
            strata = np.unique(self.stratum.astype(str), return_inverse=True)[1]
        shape = (len(names), int(strata.max(initial=0)) + 1)
        weight_N = np.ones(len(self)) if self.weight is None else self.weight
        place_N = np.ravel_multi_index((unit_N, strata), shape)
        total, weights = (
            np.bincount(place_N, weights=x, minlength=shape[0] * shape[1]).reshape(shape)
            for x in (weight_N * self.value, weight_N)
        )
        return names, total, weights

    def mean(self) -> float:
        """The metric's value."""
        _, total, weights = self.sums()
        return float(ratio(total.sum(0), weights.sum(0)))

    @property
    def proportion(self) -> bool:
        """Whether the metric is the share, in percent, of independent items that are right."""
        alone = self.group is None and self.stratum is None and self.weight is None
        return alone and bool(np.isin(self.value, (0, 100)).all())


def ratio(total: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """[..., S] -> [...]: the mean over strata, those without weight left out, of total / weight; NaN without any."""
    with np.errstate(invalid="ignore", divide="ignore"):
        each = np.where(weight > 0, total / weight, 0)
        return each.sum(-1) / np.count_nonzero(weight > 0, axis=-1)


def one_by_one(keys: Iterable[str]) -> list[str]:
    """The keys, made different where some are empty or occur again: "#3" is the fourth, "a#5" the sixth, an "a"."""
    seen, out = set(), []
    for place, key in enumerate(keys):
        out.append(f"{key}#{place}" if not key or key in seen else key)
        seen.add(key)
    return out


def short(key: str, width: int) -> str:
    """The key in at most `width` bytes; of a longer one the beginning and a digest of it all."""
    data = key.encode()
    if len(data) <= width:
        return key
    return data[: width - 17].decode(errors="ignore") + "~" + hashlib.sha256(data).hexdigest()[:16]


def table(items: Mapping[str, Items]) -> Any:
    """pyarrow's table of {metric: items}."""
    import pyarrow as pa

    parts = [_rows(metric, one) for metric, one in items.items()] or [_rows("", Items(np.zeros(0)))]
    return pa.concat_tables(parts)


def _rows(metric: str, one: Items) -> Any:
    import pyarrow as pa

    nothing = pa.nulls(len(one), pa.string())
    texts = {"item": one.key, "group": one.group, "stratum": one.stratum}
    columns = {"metric": pa.array([metric] * len(one), pa.string())}
    columns |= {name: nothing if x is None else pa.array(x, pa.string()) for name, x in texts.items()}
    columns["value"] = pa.array(one.value, pa.float64())
    columns["weight"] = pa.nulls(len(one), pa.float64()) if one.weight is None else pa.array(one.weight, pa.float64())
    return pa.table({name: columns[name] for name in COLUMNS})


def to_bytes(made: Any) -> bytes:
    """A table as the bytes of a parquet file."""
    import pyarrow.parquet as pq

    out = io.BytesIO()
    pq.write_table(made, out, compression="zstd")
    return out.getvalue()


def from_bytes(data: bytes) -> Any:
    """The table that a parquet file holds. ValueError if the bytes are none, or not one of items."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        made = pq.read_table(io.BytesIO(data))
    except pa.ArrowException as e:
        raise ValueError(f"not a parquet file: {' '.join(str(e).split())}") from e
    if missing := [name for name in COLUMNS if name not in made.column_names]:
        raise ValueError(f"no column {missing[0]!r}")
    return made.select(list(COLUMNS))


def join(*made: Any) -> Any:
    """Tables below one another."""
    import pyarrow as pa

    return pa.concat_tables(made)


def without(made: Any, evaluators: Iterable[str]) -> Any:
    """The table without the rows of some evaluators."""
    import pyarrow as pa
    import pyarrow.compute as pc

    names = pc.struct_field(pc.extract_regex(made["metric"], "^(?P<name>[^/]*)"), "name")
    return made.filter(pc.invert(pc.is_in(names, value_set=pa.array(list(evaluators), pa.string()))))


class Kept(Mapping[str, Items]):
    """{metric: items} of a table; the items of a metric are made when they are asked for."""

    def __init__(self, made: Any):
        import pyarrow.compute as pc

        self._made, self._names = made, pc.unique(made["metric"]).to_pylist()

    def __getitem__(self, metric: str) -> Items:
        import pyarrow.compute as pc

        if metric not in self._names:
            raise KeyError(metric)
        rows = self._made.filter(pc.equal(self._made["metric"], metric))
        held = {name: None if rows[name].null_count == len(rows) else rows[name].to_numpy() for name in COLUMNS[1:]}
        return Items(held["value"], held["item"], held["group"], held["stratum"], held["weight"])

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
