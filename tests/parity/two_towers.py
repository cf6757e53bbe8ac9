"""Pictures, texts and random weights for the two-tower models, and ours beside theirs."""

from __future__ import annotations

import jax
import numpy as np
from PIL import Image

from maeclip_jax import interop, objectives
from maeclip_jax.interop import convert
from maeclip_jax.nn import pixels
from maeclip_jax.params import flatten


def batch(side: int, vocab: int, length: int, rows: int = 3) -> dict[str, np.ndarray]:
    """uint8 pictures; texts of different lengths that end with the highest id and are filled with 0."""
    rng = np.random.default_rng(0)
    text = rng.integers(1, vocab - 2, (rows, length))
    ends = rng.permutation(np.linspace(2, length - 1, rows).astype(int))
    text = np.where(np.arange(length) < ends[:, None], text, 0)
    text[np.arange(rows), ends] = vocab - 1
    # Coarse patterns: towers with random weights take noise for noise, and the loss's gradient would be all rounding.
    coarse = rng.integers(0, 256, (rows, 2, 2, 3)).repeat(side // 2, 1).repeat(side // 2, 2)
    image = (0.8 * coarse + rng.integers(0, 51, (rows, side, side, 3))).astype(np.uint8)
    return {"image": image, "text": text.astype(np.int32)}


def sketch(width: int, height: int) -> Image.Image:
    """A smooth drawn picture of any proportions, for which no photograph is needed."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [127.5 + 127.5 * np.sin(x / a + y / b) for a, b in ((17, 23), (9, 31), (41, 13))]
    return Image.fromarray(np.stack(waves, -1).astype(np.uint8))


def randomise(model, keep: tuple[str, ...] = ("logit_scale", "logit_bias")) -> None:
    """Random values for every parameter of a torch module, so that none is zero or one by accident."""
    import torch

    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.rpartition(".")[2] in keep:
                continue
            noise = torch.randn(p.shape, generator=generator)
            if p.ndim < 2:
                p.copy_((1 + 0.2 * noise) if name.endswith("weight") else 0.1 * noise)
            else:
                p.copy_(noise / max(1, p[0].numel()) ** 0.5)


def torch_pictures(image_BxHxWx3: np.ndarray, stats: str):
    """What torch models take, [B, 3, H, W], normalised by our code."""
    import torch

    x = np.array(pixels.normalise(jax.numpy.asarray(image_BxHxWx3), stats))
    return torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))


def gradients(model, loss) -> dict[str, np.ndarray]:
    """{name: gradient} of a torch loss."""
    model.zero_grad()
    loss.backward()
    return {k: (p * 0 if p.grad is None else p.grad).detach().numpy() for k, p in model.named_parameters()}


def weighed(image_BxE, text_BxE):
    """Embeddings, of jax or torch, times fixed random weights, summed.

    Its gradient says as much of the towers as the loss's does. The loss's own is all cancellation in large towers with
    random weights, whose embeddings are nearly one: there two roundings of the same gradient differ by more than 1e-5.
    """
    rng = np.random.default_rng(1)
    w_image, w_text = (rng.standard_normal(tuple(z.shape)).astype(np.float32) for z in (image_BxE, text_BxE))
    if not hasattr(image_BxE, "detach"):
        return (image_BxE * w_image).sum() + (text_BxE * w_text).sum()
    import torch

    return (image_BxE * torch.from_numpy(w_image)).sum() + (text_BxE * torch.from_numpy(w_text)).sum()


def numpy_state(model) -> dict[str, np.ndarray]:
    return {k: v.detach().numpy() for k, v in model.state_dict().items()}


def embedded(found, inputs: dict) -> dict[str, np.ndarray]:
    """Embeddings of `inputs` by a model that was loaded (`interop.Loaded`)."""
    objective = objectives.make(found.config.objective, found.config.model)
    made = jax.jit(lambda params: objective.apply({"params": params}, inputs, method="embed"))(found.params)
    return jax.tree.map(np.asarray, made)


class Ours:
    """A model loaded from a folder or file of weights, and all that is compared of it on `batch`.

    `gradient`: of the loss, or, with `weigh`, of the embeddings as `weighed`.
    """

    def __init__(self, kind: str, path, inputs: dict, weigh: bool = False, **settings):
        self.kind, self.found = kind, interop.load(kind, path, **settings)
        config = self.found.config
        self.objective = objectives.make(config.objective, config.model)
        self.inputs = inputs

        def outputs(params):
            def apply(params, **kwargs):
                rngs = {"mask": jax.random.key(0)}
                return self.objective.apply({"params": params}, inputs, rngs=rngs, **kwargs)

            def differentiated(params):
                return weighed(*apply(params, method="embed").values()) if weigh else apply(params, train=False)[0]

            made = {name: apply(params, method=name) for name in ("encode", "embed")}
            return made | dict(loss=apply(params, train=False)[0], gradient=jax.grad(differentiated)(params))

        self.outputs = jax.tree.map(np.asarray, jax.jit(outputs)(self.found.params))
        self.gradient = flatten(self.outputs["gradient"])

    def theirs_as_ours(self, gradient: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """A gradient by their names, by our paths: conversions only move values."""
        source = interop.source_of(self.kind)
        config = self.found.config.to_dict()
        return convert.into_ours(source, convert.renamed(gradient, source), config, "gradient")[0]
