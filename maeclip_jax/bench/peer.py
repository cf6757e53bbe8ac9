"""Another code base's train step beside ours: a process of its own, whose steps take turns with ours.

The process is another Python's where torch is installed there, so `open_clip_steps` imports nothing of ours.
"""

from __future__ import annotations

import json
import statistics
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from maeclip_jax.errors import UserError

PEERS = {"open_clip": Path(__file__).with_name("open_clip_steps.py")}
WARM_UP = 2  # steps of either that are not counted


class Peer:
    """A context: `step()` runs one step of the peer, `figures()` tells what all took."""

    def __init__(self, name: str, python: str, task: Mapping[str, Any]):
        """`task`: what `open_clip_steps.task` reads. UserError if `python` cannot run the peer."""
        self.name, self._seconds, self._cpu = name, [], []
        try:
            self._process = subprocess.Popen(
                [python, str(PEERS[name]), json.dumps(task)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        except OSError as e:
            raise UserError(f"--peer_python={python} cannot be started: {e.strerror}") from e

    def __enter__(self) -> Peer:
        try:
            self.about = self._answer()
        except UserError:
            self._process.kill()
            raise
        return self

    def __exit__(self, *_) -> None:
        self._process.kill()
        self._process.wait()

    def _answer(self) -> dict:
        line = self._process.stdout.readline()
        if not line:
            raise UserError(f"the peer {self.name} ended with code {self._process.wait()}; what it said is above")
        answer = json.loads(line)
        if "error" in answer:
            raise UserError(f"--peer={self.name}: {answer['error']}")
        return answer

    def step(self) -> None:
        """One step of the peer, while the caller does nothing."""
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        took = self._answer()
        self._seconds.append(took["seconds"])
        self._cpu.append(took["processor seconds"])

    def figures(self, ours: Mapping[str, Any]) -> dict[str, Any]:
        """Medians and the best of the peer's steps, and how many times as fast as the peer `ours` are."""
        name, seconds = self.name, self._seconds[WARM_UP:]
        found = {
            name: self.about["peer"],
            f"{name} parameters": self.about["parameters"],
            f"{name} step seconds (median)": statistics.median(seconds),
            f"{name} step seconds (best)": min(seconds),
            f"{name} step processor seconds (best)": min(self._cpu[WARM_UP:]),
        }
        for kind in ("step seconds (median)", "step seconds (best)", "step processor seconds (best)"):
            found[f"times {name}'s speed, by {kind}"] = found[f"{name} {kind}"] / ours[kind]
        return found


def task_of(config, objective, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The peer's model, batch and optimizer from a config of ours. UserError for what the peer does not have."""
    if config.objective != "clip" or config.model.loss != "softmax" or config.model.keep < 1:
        raise UserError(
            f"--peer=open_clip: it has no {config.objective} with loss={config.model.get('loss', '')} and "
            f"keep={config.model.get('keep', 1.0)}; valid: experiments/clip.py with loss=softmax, keep=1"
        )
    if config.optim.name != "adamw":
        raise UserError(f"--peer=open_clip steps by adamw, not optim.name={config.optim.name}")
    image, text = objective.image_tower, objective.text_tower
    words = {k: text[k] for k in ("vocab", "width", "depth", "heads", "causal")} | {"length": inputs["text"].shape[1]}
    return {
        "batch": config.batch_size, "dtype": config.model.compute.dtype, "embed": config.model.embed_width,
        "image": {k: image[k] for k in ("size", "patch", "width", "depth", "heads", "activation")},
        "text": words,
        "optim": {k: config.optim[k] for k in ("lr", "b1", "b2", "eps", "weight_decay")},
    }  # fmt: skip
