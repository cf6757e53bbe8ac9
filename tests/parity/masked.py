"""A MAE of ours with the patches that a given noise keeps; no torch."""

from __future__ import annotations

import jax
import numpy as np

from maeclip_jax import objectives
from maeclip_jax.nn.mask import keep_lowest
from maeclip_jax.objectives.reconstruction import reconstruction_errors, reconstruction_losses
from maeclip_jax.objectives.streams import stream_inputs
from maeclip_jax.params import flatten


def ours_on(found, pictures, noise):
    """(kept, {tokens, predicted, loss}, gradient by path) with the patches that `noise` keeps."""
    objective = objectives.make("mae", found.config.model)
    kept = {"image": keep_lowest(noise, int(noise.shape[1] * (1 - found.config.model.mask.image)))}

    def run(module):
        inputs = stream_inputs({"image": pictures}, module.image_tower, module.stats)
        tokens = module.image(inputs, kept)
        predicted = module.decoder(tokens, kept)
        loss = reconstruction_losses(reconstruction_errors(predicted, inputs, kept, module.norm_pix))["image"]
        return loss, dict(tokens=tokens["image"].x, cls=tokens["image"].cls, predicted=predicted["image"], loss=loss)

    function = jax.jit(jax.value_and_grad(lambda p: objective.apply({"params": p}, method=run), has_aux=True))
    (_, made), gradient = function(found.params)
    return kept["image"], jax.tree.map(np.asarray, made), jax.tree.map(np.asarray, flatten(gradient))
