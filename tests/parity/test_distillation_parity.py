"""DINO's and iBOT's losses against what their authors' code does, in torch: heads, losses, gradients and centres."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maeclip_jax.objectives import distillation
from tests.parity.compare import close

torch = pytest.importorskip("torch", reason="parity needs torch: make test-parity")

WIDTH, HIDDEN, NARROW, COUNT, ROWS, VIEWS, TOKENS = 12, 24, 8, 40, 6, 5, 9
TEMPERATURES, MOMENTUM = (0.1, 0.04), 0.9
RNG = np.random.default_rng(0)


def array(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def their_head(params):
    """Three layers with GELU, a unit vector, and a linear layer whose rows have length 1, as weight norm keeps them."""
    layers = [torch.nn.Linear(*params[name]["kernel"].shape) for name in ("up", "down", "project")]
    for layer, name in zip(layers, ("up", "down", "project")):
        layer.weight.data = torch.tensor(np.asarray(params[name]["kernel"]).T)
        layer.bias.data = torch.tensor(np.asarray(params[name]["bias"]))
    rows = torch.nn.Parameter(torch.tensor(np.asarray(params["prototypes"]).T))

    def head(x):
        for layer in layers[:2]:
            x = torch.nn.functional.gelu(layer(x))
        x = torch.nn.functional.normalize(layers[2](x), dim=-1, p=2)
        return x @ torch._weight_norm(rows, torch.ones(len(rows), 1), 0).T

    return head, {**{f"{n}/kernel": layer.weight for n, layer in zip(("up", "down", "project"), layers)}, "rows": rows}


HEAD = distillation.PrototypeHead(HIDDEN, NARROW, COUNT)


def heads():
    """Parameters of the student's and of the teacher's head: random, with gradients of like sizes."""

    def fresh(seed):
        rng = np.random.default_rng(seed)
        shapes = jax.eval_shape(lambda: HEAD.init(jax.random.key(0), jnp.zeros((1, WIDTH))))["params"]
        return jax.tree.map(lambda x: (0.4 * rng.standard_normal(x.shape)).astype(np.float32), shapes)

    return fresh(1), fresh(2)


def assigned(logits, centre):
    """What the teacher assigns, centred and sharpened, without a gradient."""
    return torch.softmax((logits - centre) / TEMPERATURES[1], dim=-1).detach()


def entropy(targets, logits):
    return -(targets * torch.log_softmax(logits / TEMPERATURES[0], dim=-1)).sum(-1)


def moved(centre, logits):
    """The running mean of logits over all but the last axis."""
    return centre * MOMENTUM + logits.detach().reshape(-1, COUNT).mean(0) * (1 - MOMENTUM)


def ours(pairs):
    """(loss, gradients of parameters and features, the moved centre) as a function of arrays."""

    def loss(params, student, teacher_params, teacher, centre):
        z, target = HEAD.apply({"params": params}, student), HEAD.apply({"params": teacher_params}, teacher)
        their_DxK = distillation.prototypes(teacher_params)
        found, _ = distillation.distilled(
            z, target, distillation.prototypes(params), their_DxK, centre, pairs, TEMPERATURES
        )
        return found, distillation.moved_centre(centre, target.mean((0, 1)), their_DxK, MOMENTUM)

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))


def compare(name, found, grads, centre, want, tensors, features, their_centre):
    want.backward()
    reference = f"facebookresearch/dino and bytedance/ibot in torch, {name}"
    close(reference, "loss", float(found), want.item(), rtol=1e-5)
    close(reference, "centre", centre, their_centre.numpy(), rtol=1e-5)
    mine = {
        path: grads[0]["prototypes"].T if path == "rows" else grads[0][path.split("/")[0]]["kernel"].T
        for path in tensors
    }
    theirs = {path: tensor.grad.numpy() for path, tensor in tensors.items()}
    close(reference, "parameters", mine, theirs, rtol=1e-5, kind="gradient")
    close(reference, "features", grads[1], features.grad.numpy(), rtol=1e-5, kind="gradient")


def test_dino():
    """Two steps, so that the second has a centre: views of equal number are left out."""
    student_params, teacher_params = heads()
    (head, tensors), (teach, _) = their_head(student_params), their_head(teacher_params)
    program, centre, their_centre = ours(distillation.others(2, VIEWS)), jnp.zeros(COUNT), torch.zeros(COUNT)
    for step in range(2):
        views = array(ROWS, VIEWS, WIDTH)
        features = torch.tensor(views, requires_grad=True)
        logits, targets = head(features), teach(torch.tensor(views[:, :2]))
        terms = [
            entropy(assigned(targets[:, g], their_centre), logits[:, v]).mean()
            for g in range(2) for v in range(VIEWS) if v != g
        ]  # fmt: skip
        want, their_centre = sum(terms) / len(terms), moved(their_centre, targets)
        (found, centre), grads = program(student_params, views, teacher_params, views[:, :2], centre)
        for tensor in tensors.values():
            tensor.grad = None
        compare(f"DINO, step {step + 1}", found, grads, np.asarray(centre), want, tensors, features, their_centre)


def test_ibot():
    """As many patches of each picture are masked; the centre is the mean over all patches, masked or not."""
    student_params, teacher_params = heads()
    (head, tensors), (teach, _) = their_head(student_params), their_head(teacher_params)
    seen, whole = array(ROWS, TOKENS, WIDTH), array(ROWS, TOKENS, WIDTH)
    mask = np.argsort(RNG.random((ROWS, TOKENS)), axis=1) < 4
    ids = np.nonzero(mask)[1].reshape(ROWS, 4)
    their_centre = torch.tensor(0.3 * array(COUNT))
    centre = jnp.asarray(their_centre.numpy())
    features = torch.tensor(seen, requires_grad=True)
    logits, targets = head(features), teach(torch.tensor(whole))
    masked = torch.tensor(mask).float()
    each = (entropy(assigned(targets, their_centre), logits) * masked).sum(-1) / masked.sum(-1).clamp(min=1.0)
    want = each.mean()

    def loss(params, student, teacher_params, teacher, centre):
        at = ids[..., None]
        z = HEAD.apply({"params": params}, jnp.take_along_axis(student, at, axis=1))
        target = HEAD.apply({"params": teacher_params}, teacher)
        their_DxK = distillation.prototypes(teacher_params)
        found, _ = distillation.distilled(
            z, jnp.take_along_axis(target, at, axis=1), distillation.prototypes(params), their_DxK, centre, None,
            TEMPERATURES,
        )  # fmt: skip
        return found, distillation.moved_centre(centre, target.mean((0, 1)), their_DxK, MOMENTUM)

    both = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    (found, centre), grads = both(student_params, seen, teacher_params, whole, centre)
    compare("iBOT", found, grads, np.asarray(centre), want, tensors, features, moved(their_centre, targets))


def test_sinkhorn():
    """As DINOv2 does it: exponentials, then rows and columns divided by their sums in turn."""
    teacher, prototypes = (
        x / np.linalg.norm(x, axis=axis, keepdims=True)
        for x, axis in ((array(ROWS, 2, NARROW), -1), (array(NARROW, COUNT), 0))
    )
    q = torch.exp(torch.tensor(teacher.reshape(-1, NARROW) @ prototypes).double() / TEMPERATURES[1]).t()
    q /= q.sum()
    for _ in range(3):
        q /= q.sum(dim=1, keepdim=True) * len(q)
        q /= q.sum(dim=0, keepdim=True) * q.shape[1]
    want = (q * q.shape[1]).t().numpy()
    centre = jax.jit(lambda *x: distillation.sinkhorn_centre(*x, TEMPERATURES[1]))(teacher, prototypes)
    logits = teacher.reshape(-1, NARROW) @ prototypes
    found = jax.nn.softmax((logits - np.asarray(centre)[None]) / TEMPERATURES[1], axis=-1)
    np.testing.assert_allclose(found, want, atol=1e-5)
