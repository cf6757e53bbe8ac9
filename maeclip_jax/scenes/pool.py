"""Drawing and encoding many scenes on several cores, in order.

The workers are plain subprocesses that are told their job on stdin and write records to stdout. Unlike
`multiprocessing` this needs no `if __name__ == "__main__"` in the caller's script, and forks nothing that may hold
threads (jax, grain).
"""

from __future__ import annotations

import os
import pathlib
import pickle
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from maeclip_jax.scenes.stream import scene
from maeclip_jax.scenes.world import SceneSpec

CHUNK = 64  # scenes a worker draws before it is another worker's turn
SMALL = 2000  # fewer scenes are drawn sooner than workers are started


class Job(NamedTuple):
    spec: SceneSpec
    seed: int
    split: str
    indices: Sequence[int]
    encoding: str  # of the picture: "png" or "jpeg"


def encoded(job: Job, index: int) -> dict:
    """One scene with `image` and `masks` as bytes of a file."""
    import cv2

    options = {
        # Little is gained by more effort: the grain of the background does not compress.
        "png": [cv2.IMWRITE_PNG_COMPRESSION, 1],
        # Full chroma, or the edges of red and blue objects bleed.
        "jpeg": [cv2.IMWRITE_JPEG_QUALITY, 95, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444],
    }
    record = scene(job.spec, job.seed, index, job.split)
    picture = cv2.imencode("." + job.encoding, record["image"][..., ::-1], options[job.encoding])[1]
    masks = cv2.imencode(".png", record["masks"], options["png"])[1]
    return {**record, "image": picture.tobytes(), "masks": masks.tobytes()}


def cores() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def draw(job: Job, workers: int | None = None) -> Iterator[dict]:
    """The encoded scenes of a job, in the order of its indices, whatever the number of workers (default: cores).

    Raises RuntimeError if a worker dies.
    """
    workers = workers or (cores() if len(job.indices) >= SMALL else 1)
    if workers == 1:
        for index in job.indices:
            yield encoded(job, index)
        return
    chunks = [job.indices[i : i + CHUNK] for i in range(0, len(job.indices), CHUNK)]
    root = str(pathlib.Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "maeclip_jax.scenes.pool"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment,
        )
        for _ in range(workers)
    ]  # fmt: skip
    try:
        for i, process in enumerate(processes):
            pickle.dump((job._replace(indices=()), chunks[i::workers]), process.stdin)
            process.stdin.close()
        for i in range(len(chunks)):
            process = processes[i % workers]
            try:
                yield from pickle.load(process.stdout)
            except EOFError:
                raise RuntimeError(f"a process that draws scenes ended early (exit code {process.wait()})") from None
    finally:
        for process in processes:
            process.kill()
            process.stdout.close()
            process.wait()


def _serve():
    job, chunks = pickle.load(sys.stdin.buffer)
    for chunk in chunks:
        pickle.dump([encoded(job, index) for index in chunk], sys.stdout.buffer, protocol=pickle.HIGHEST_PROTOCOL)
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    _serve()
