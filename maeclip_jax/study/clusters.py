"""Clusters of a data set's embeddings by k-means, in bounded memory, however many records there are."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from maeclip_jax.errors import UserError, storage

CHUNK = 65_536  # rows in memory at a time
EXTRA = "pip install -e '.[study]'"


def embed(model: Any, made: Any, to: str | os.PathLike, *, stream: str = "image", batch: int = 256) -> Path:
    """Writes float16 [N, D] of all records of a source to the .npy file `to`, batch by batch; returns its path.

    model: of maeclip_jax.load. stream: "image" or "text" (the first caption). On disk 2 N D bytes; in memory a batch.
    """
    path, file = Path(to).with_suffix(".npy"), None
    path.parent.mkdir(parents=True, exist_ok=True)
    for start in range(0, len(made), batch):
        records = [made[i] for i in range(start, min(start + batch, len(made)))]
        if stream == "image":
            found = model.embed(images=[r["image"] for r in records])["image"]
        else:
            found = model.embed(texts=[r["texts"][0] if "texts" in r else r["text"] for r in records])["text"]
        if file is None:
            with storage.writing(path, 2 * len(made) * found.shape[1]):
                file = np.lib.format.open_memmap(path, "w+", np.float16, (len(made), found.shape[1]))
        file[start : start + len(records)] = found
    file.flush()
    return path


def chunks(path: str | os.PathLike, rows: int = CHUNK) -> Iterator[np.ndarray]:
    """float32 [n, D], rows of length 1, of an .npy file that is never in memory as a whole."""
    file = opened(path)
    for start in range(0, len(file), rows):
        yield _unit(file[start : start + rows])


def _unit(rows_NxD: np.ndarray) -> np.ndarray:
    rows_NxD = np.array(rows_NxD, np.float32)
    return rows_NxD / np.maximum(np.linalg.norm(rows_NxD, axis=1, keepdims=True), 1e-12)


def opened(path: str | os.PathLike) -> np.ndarray:
    """The array of an .npy file, on the disk. UserError if it is not a matrix."""
    try:
        file = np.load(path, mmap_mode="r")
    except (OSError, ValueError) as e:
        raise UserError(f"cannot read the embeddings {os.fspath(path)!r}: {e}; valid: an .npy file [N, D]") from e
    if file.ndim != 2 or not len(file):
        raise UserError(f"the embeddings {os.fspath(path)!r} have the shape {list(file.shape)}; valid: [N, D]")
    return file


def kmeans(path: str | os.PathLike, clusters: int, *, seed: int = 0, passes: int = 3) -> np.ndarray:
    """int32 [N]: the cluster of each row of the .npy file at `path`, by scikit-learn's MiniBatchKMeans.

    Two chunks are in memory at a time. UserError where there are fewer rows than clusters, or no scikit-learn.
    """
    try:
        from sklearn.cluster import MiniBatchKMeans
    except ImportError:
        raise UserError(f"clusters are found by scikit-learn, which is not installed: {EXTRA}") from None
    file = opened(path)
    if not 1 <= clusters <= len(file):
        raise UserError(f"{clusters} clusters of {len(file):,} embeddings; valid: 1 to {len(file):,}")
    rows, step = max(CHUNK, clusters), max(4096, clusters)
    model = MiniBatchKMeans(clusters, random_state=seed, batch_size=step, n_init=1, reassignment_ratio=0.01)
    order = np.random.default_rng(seed)
    for _ in range(passes):
        for start in order.permutation(np.arange(0, len(file), rows)):
            part = _unit(file[start : start + rows])
            pieces = [part[begin : begin + step] for begin in range(0, len(part), step)]
            for piece in pieces:
                if len(piece) >= clusters:  # the centres begin as rows of the first piece; a shorter one is left out
                    model.partial_fit(piece)
    return np.concatenate([model.predict(part).astype(np.int32) for part in chunks(path, rows)])
