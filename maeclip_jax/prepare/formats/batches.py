"""Rows of Arrow batches whose texts need not be UTF-8."""

from __future__ import annotations


def rows(batch, trusted: bool = True) -> list[dict]:
    """The rows of a batch; what is not UTF-8 comes out with surrogates, as elsewhere.

    `trusted`: False for bytes that went through no decoder, whose offsets may point anywhere: ArrowInvalid then.
    """
    if not trusted:
        batch.validate()
        _check_offsets(batch)
    try:
        return batch.to_pylist()
    except UnicodeDecodeError:
        columns = {name: _texts(column) for name, column in zip(batch.schema.names, batch.columns)}
        return [dict(zip(columns, values)) for values in zip(*columns.values())]


def _check_offsets(batch) -> None:
    """A full validation, but that texts which are not UTF-8 may pass."""
    for column in batch.columns:
        raw = as_bytes(column.type)
        (column if raw is None else column.view(raw)).validate(full=True)


def as_bytes(kind):
    """The type of bytes that a type of texts is, checked for UTF-8; None for another type."""
    import pyarrow as pa

    if pa.types.is_string(kind):
        return pa.binary()
    if pa.types.is_large_string(kind):
        return pa.large_binary()
    return pa.binary_view() if pa.types.is_string_view(kind) else None


def _texts(column) -> list:
    raw = as_bytes(column.type)
    if raw is not None:
        data = column.view(raw).to_pylist()
        return [None if value is None else value.decode("utf-8", errors="surrogateescape") for value in data]
    try:
        return column.to_pylist()
    except UnicodeDecodeError:  # in a struct or a list
        return [None] * len(column)
