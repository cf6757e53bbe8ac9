"""The probe's LARS against MAE's, written anew in torch from what facebookresearch/mae does."""

from functools import partial

import jax
import numpy as np
import pytest

from maeclip_jax.evals import lars
from tests.parity import compare

torch = pytest.importorskip("torch", reason="torch is missing: make test-parity")

ROWS, WIDTH, CLASSES, STEPS = 64, 24, 7, 200


class Lars(torch.optim.Optimizer):
    """Steps of a matrix are 0.001 times its length over its gradient's; those of a vector are not scaled. No decay."""

    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                change = p.grad
                if p.ndim > 1 and p.norm() > 0 and change.norm() > 0:
                    change = change * (0.001 * p.norm() / change.norm())
                kept = self.state[p]
                kept["velocity"] = 0.9 * kept.get("velocity", torch.zeros_like(p)) + change
                p -= group["lr"] * kept["velocity"]


def batches():
    random = np.random.default_rng(0)
    centre_CxD = random.normal(size=(CLASSES, WIDTH))
    for _ in range(STEPS):
        label = random.integers(0, CLASSES, ROWS)
        x = (centre_CxD[label] + 2 * random.normal(size=(ROWS, WIDTH))) * np.geomspace(0.01, 10, WIDTH) + 3
        yield x.astype(np.float32), label


def rate(step):
    return 0.4 * (step + 1) / STEPS


def test_steps_are_those_of_torch():
    """Weights, running statistics and the losses on the way, up to the rate of a batch of 1,024."""
    head = first = lars.start(WIDTH, CLASSES, seed=1)
    optimizer = lars.lars(rate)
    state = optimizer.init({"w": head.w, "b": head.b})
    ours, update = [], jax.jit(partial(lars.update, optimizer))
    for x, label in batches():
        head, state, metrics = update(head, state, x, label)
        ours.append(float(metrics[0]))

    norm = torch.nn.BatchNorm1d(WIDTH, affine=False, eps=1e-6)
    linear = torch.nn.Linear(WIDTH, CLASSES)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor(first.w.T))
        linear.bias.zero_()
    theirs, torchs = [], Lars(linear.parameters(), lr=0.0)
    for n, (x, label) in enumerate(batches()):
        torchs.param_groups[0]["lr"] = rate(n)
        loss = torch.nn.functional.cross_entropy(linear(norm(torch.tensor(x))), torch.tensor(label))
        torchs.zero_grad()
        loss.backward()
        torchs.step()
        theirs.append(float(loss.detach()))

    assert np.linalg.norm(head.w - first.w) > 0.2 * np.linalg.norm(first.w)  # short steps are LARS's way
    want = {
        "w": linear.weight.detach().numpy().T,
        "b": linear.bias.detach().numpy(),
        "mean": norm.running_mean.numpy(),
        "variance": norm.running_var.numpy(),
    }
    reference = "LARS of facebookresearch/mae, in torch"
    compare.close(reference, f"losses of {STEPS} steps", ours, theirs)
    compare.close(reference, f"linear head after {STEPS} steps", {k: np.asarray(getattr(head, k)) for k in want}, want)
