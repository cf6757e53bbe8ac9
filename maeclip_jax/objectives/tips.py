"""TIPS: CLIP, self-distillation, and the teacher's tokens of patches that are masked (Maninis et al. 2025).

The student also sees each global view with some patches hidden behind a learned token, and learns to assign these
patches to prototypes as the teacher does, which sees all of them. The public code is inference alone; the losses are
DINO's and iBOT's (bytedance/ibot). Its second caption and second class token are not here: a batch has one caption.
"""

from __future__ import annotations

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from maeclip_jax.nn.mask import draw_noise, hidden_ids, keep_by, keep_count, take
from maeclip_jax.nn.pool import Tokens
from maeclip_jax.nn.tower import grid_side
from maeclip_jax.objectives import distillation
from maeclip_jax.objectives.distillation import TEACHER
from maeclip_jax.objectives.silc import Silc


class Tips(Silc):
    """`mask`: {"image": share of a global view's patches that is hidden}. `weights`: contrast, distil, patches.

    Patches have a head and a centre of their own, of the same sizes as those of pictures.
    """

    mask: Mapping | None = None

    crashes_in_parts = ("0.11.",)  # versions of jax, see `run.microbatch.crashes`
    heads = ("distil_head", "patch_head")
    taught = ("image", "image_head", *heads)
    units = Silc.units | {
        "patches": ("nats", "lower"), "patch_entropy": ("nats", "none"), "patch_spread": ("nats", "none"),
    }  # fmt: skip

    def setup(self):
        super().setup()
        count = grid_side(self.image_tower) ** 2
        if keep_count(count, self.mask["image"]) == count:
            raise ValueError(f"mask.image={self.mask['image']} hides none of {count} patches; valid: above 0")
        self.patch_head = self._head()
        self.mask_token = self.param("mask_token", nn.initializers.zeros_init(), (self.image_tower["width"],))

    def _passes(self) -> dict[str, Mapping]:
        masked = [f"masked_{n}" for n in range(self.distil["globals"])]
        return super()._passes() | dict.fromkeys(masked, self.image_tower)

    def draw(self, batch: Mapping[str, jax.Array], *, train: bool) -> dict:
        """Of SILC, and noise by which patches of each global view are hidden."""
        drawn = super().draw(batch, train=train)
        if not train:
            return drawn
        views, length = self.distil["globals"], grid_side(self.image_tower) ** 2
        noise = draw_noise(self.make_rng("mask"), batch["image"].shape[0], views * length, self.mask_share)
        return drawn | {"hidden": noise}

    def _patches(self, seen_BxGxNxP: jax.Array, tokens: Tokens, drawn: Mapping) -> dict:
        """What both say of hidden patches [B, G * M, width], and the mean of what the teacher says of all."""
        batch, views, length = seen_BxGxNxP.shape[:3]
        noise_RxN = jnp.broadcast_to(drawn["hidden"], (batch, views * length)).reshape(-1, length)
        kept = keep_by(noise_RxN, batch * views, keep_count(length, self.mask["image"]))
        ids_RxM = hidden_ids(kept)
        x_RxNxP = seen_BxGxNxP.reshape(-1, *seen_BxGxNxP.shape[2:])
        noise = self._path_noise(drawn, "masked", views)
        seen = self.image({"image": x_RxNxP}, None, noise, (kept.mask_BxN, self.mask_token))["image"]
        student_RxMxD = self.patch_head(take(seen.x, ids_RxM))
        with jax.named_scope(TEACHER):
            teacher_RxNxD = self._by_teacher("patch_head", tokens.x)
        target_RxMxD = take(teacher_RxNxD, ids_RxM)
        return {
            "student_patches": student_RxMxD.reshape(batch, -1, student_RxMxD.shape[-1]),
            "teacher_patches": target_RxMxD.reshape(batch, -1, target_RxMxD.shape[-1]),
            "teacher_mean": jnp.mean(teacher_RxNxD.reshape(batch, -1, target_RxMxD.shape[-1]), axis=1),
        }

    def combine(self, made: Mapping, *, train: bool) -> tuple[jax.Array, dict]:
        """SILC's, and w_patches * the cross entropy of hidden patches; metrics `patches`, `patch_entropy` and so on."""
        loss, metrics = super().combine(made, train=train)
        if not train:
            return loss, metrics
        mean_D = jnp.mean(made["teacher_mean"], axis=0)
        patches, about = self._distilled("patch_head", made["student_patches"], made["teacher_patches"], None, mean_D)
        metrics |= {"patches": patches} | {f"patch_{k}": v for k, v in about.items()}
        return loss + self.weights["patches"] * patches, metrics

    def doubt(self, metrics: Mapping[str, float], batch_size: int) -> str:
        """What makes a step useless, in a sentence: of SILC, or assignments of patches that have collapsed."""
        if (said := super().doubt(metrics, batch_size)) or "patch_entropy" not in metrics:
            return said
        about = metrics["patch_entropy"], metrics["patch_spread"]
        return distillation.collapsed(*about, self.distil["prototypes"], "patches")
