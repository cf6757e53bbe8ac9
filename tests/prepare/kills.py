"""Kills a preparation at random instants and continues it: `python tests/prepare/kills.py --kills=20`.

The result has the bytes of one that nobody disturbed. Splits, repeated keys, equal pictures, bad records and failed
downloads are in the source, and two workers prepare it.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import dump_sources
import pair_sources

ROOT = Path(__file__).parents[2]


def source(root: Path, shards: int, records: int) -> Path:
    for shard in range(shards):
        members = []
        for i in range(records):
            number = shard * records + i
            folder = "val/" if number % 7 == 0 else ""
            members += pair_sources.pair(f"{folder}{i:05d}", number if number % 5 else number // 10, size=(320, 240))
            if number % 50 == 0:
                members += [(f"{i:05d}x.jpg", b"no picture"), (f"{i:05d}x.txt", b"c")]
        pair_sources.write_tar(root / f"{shard:05d}.tar", members)
    dump_sources.img2dataset(root / "more", "webdataset", [dump_sources.downloads(20, 30)])
    return root


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--shards", type=int, default=30)
    parser.add_argument("--records", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        src = source(Path(folder, "src"), args.shards, args.records)
        command = [sys.executable, "-m", "maeclip_jax.prepare", "--src", str(src), "--name", "n", "--short_side", "128"]
        command += ["--workers", "2", "--same_bytes", "drop", "--out"]

        def run(out: str, seconds: float | None = None) -> bool:
            """Whether the preparation came to its end before it was killed, with all its workers."""
            process = subprocess.Popen(
                [*command, out], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
            )
            try:
                error = process.communicate(timeout=seconds)[1]
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
                return False
            assert process.returncode == 0, error.decode()[-1000:]
            return True

        started = time.perf_counter()
        run(str(Path(folder, "whole")))
        whole = time.perf_counter() - started
        expected, kills, runs = pair_sources.digests(Path(folder, "whole")), 0, 0
        while kills < args.kills:
            out = Path(folder, f"{runs}")
            while kills < args.kills and not run(str(out), rng.uniform(0, 1.1 * whole)):
                kills += 1
            run(str(out))
            assert pair_sources.digests(out) == expected, f"run {runs} differs after {kills} kills"
            runs += 1
    print(f"{kills} kills in {runs} preparations of {whole:.1f} s; all with the bytes of one left alone")


if __name__ == "__main__":
    main()
