"""A run of `maeclip_jax.main` whose first save lasts until the machine has slept: python tests/sleeper.py MARKER ARG...

MARKER is written when that save has begun, so that whoever started the run can stop the process then.
Orbax's timeout is TIMEOUT seconds, where it is set: shorter than the sleep, or the tests would sleep for as long as it.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path

LEAST = 3.0  # seconds of sleep that are taken for one


def main() -> int:
    marker, *args = sys.argv[1:]
    from maeclip_jax import cli
    from maeclip_jax import main as command

    cli.start_logging()  # before orbax is imported, as in every run
    from orbax.checkpoint import JsonCheckpointHandler

    from maeclip_jax.parallel import sleep
    from maeclip_jax.run import saving

    sleep.LEAST_SECONDS = LEAST
    saving.TIMEOUT_SECONDS = int(os.environ.get("TIMEOUT", saving.TIMEOUT_SECONDS))
    write = JsonCheckpointHandler._save_fn

    async def held(handler, x, directory):
        if not Path(marker).exists():
            while "async_save" not in [t.name for t in threading.enumerate()]:  # whose clock is the one that runs on
                time.sleep(0.05)
            time.sleep(0.5)
            Path(marker).touch()
            while not sleep.slept():
                time.sleep(0.05)
            time.sleep(1.0)  # longer than orbax takes to see that its time is over
        return await write(handler, x, directory)

    JsonCheckpointHandler._save_fn = held
    return command.main(args)


if __name__ == "__main__":
    sys.exit(main())
