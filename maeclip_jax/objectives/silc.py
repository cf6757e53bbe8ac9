"""SILC: CLIP, plus self-distillation from parts of the picture to the whole (Naeem et al. 2023).

A teacher, the running average of the image tower and of a head on top of it, sees the global views of a picture; the
student sees these and small local views, and learns to assign each view as the teacher assigns the others. Every
global view is also contrasted with the caption. Its training code is not public; the loss is that of DINO
(facebookresearch/dino).

The teacher's average has a decay of its own, which is fixed, since it must go on learning from the captions. It is
part of the state and not of the parameters: what is evaluated, exported and loaded is the student. Without a teacher,
as before the first step, the student teaches itself, and in evaluation the loss is the contrast alone.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax

from maeclip_jax.nn import pixels
from maeclip_jax.nn.mesh import batch_devices, columns_sharded
from maeclip_jax.nn.pool import Tokens
from maeclip_jax.nn.tower import grid_side
from maeclip_jax.objectives import distillation, views
from maeclip_jax.objectives.clip import Clip
from maeclip_jax.objectives.distillation import TEACHER
from maeclip_jax.objectives.streams import check_pooled, path_noise

VIEWS = ("image", "batch")
FIRST = ("picture", "crop")


class Silc(Clip):
    """`distil`: dict of the views, of the head on the pooled picture, and of the teacher; see the experiment file.

    globals, locals: views of a picture; first: picture (the first global view is what CLIP sees) | crop (it is cut
    out, too); global_area, local_area: of crops, as shares of the picture's; local_patches: along a side of a local
    view; views: image (crops are of what CLIP sees) | batch (of `views` [B, 1, H, W, 3], the whole picture). hidden,
    width, prototypes: of the head. student_temperature, teacher_temperature; centring: mean (the running mean of the
    teacher's logits, by centre_momentum) | sinkhorn; momentum: the decay of the teacher's average.
    `weights`: contrast, distil.
    """

    distil: Mapping | None = None
    weights: Mapping | None = None

    heads = ("distil_head",)  # those with prototypes
    taught = ("image", "image_head", *heads)  # what the teacher has of the parameters
    units = Clip.units | {
        "distil": ("nats", "lower"), "teacher_entropy": ("nats", "none"), "teacher_spread": ("nats", "none"),
        "teacher_dimensions": ("dimensions", "none"),
    }  # fmt: skip

    def setup(self):
        super().setup()
        d = self.distil
        for name, valid in (("views", VIEWS), ("first", FIRST), ("centring", distillation.CENTRINGS)):
            if d[name] not in valid:
                raise ValueError(f"unknown distil.{name} {d[name]!r}; valid: {', '.join(valid)}")
        if d["globals"] < 1 or d["locals"] < 0 or d["globals"] + d["locals"] < 2:
            raise ValueError(
                f"distil.globals is {d['globals']} and distil.locals {d['locals']}; valid: a global view and another"
            )
        for name in ("momentum", "centre_momentum"):
            if not 0 <= d[name] < 1:
                raise ValueError(f"distil.{name} must lie in [0, 1), got {d[name]}")
        for name in ("student_temperature", "teacher_temperature"):
            if not d[name] > 0:
                raise ValueError(f"distil.{name} must be above 0, got {d[name]}")
        for name in ("global_area", "local_area"):
            low, high = d[name]
            if not 0 < low <= high <= 1:
                raise ValueError(f"distil.{name} is ({low}, {high}); valid: two shares of a picture, the smaller first")
        if not 1 <= d["local_patches"] <= grid_side(self.image_tower):
            raise ValueError(f"distil.local_patches is {d['local_patches']}; valid: 1 to {grid_side(self.image_tower)}")
        if self.keep < 1:
            raise ValueError(f"keep is {self.keep}, but views that are distilled keep all of their patches; valid: 1")
        self.distil_head = self._head()

    def _head(self) -> distillation.PrototypeHead:
        return distillation.PrototypeHead(**{k: self.distil[k] for k in ("hidden", "width", "prototypes")})

    def inputs(self) -> dict[str, jax.ShapeDtypeStruct]:
        """What one example must hold."""
        shapes = super().inputs()
        if self.distil["views"] == "batch":
            shapes["views"] = jax.ShapeDtypeStruct((1, *shapes["image"].shape), shapes["image"].dtype)
        return shapes

    # The teacher, which the loop keeps in its state.

    def teacher(self, params: Mapping) -> dict:
        """The teacher before the first step: a copy of its part of `params`, and centres of zeros."""
        found = {"params": jax.tree.map(jnp.copy, {k: params[k] for k in self.taught if k in params})}
        if self.distil["centring"] == "mean":
            found["centre"] = {k: jnp.zeros(self.distil["prototypes"]) for k in self.heads}
        return found

    def follow(self, teacher: Mapping, params: Mapping) -> dict:
        """The teacher after an update has made `params`; its centres have moved in `combine`."""
        new = {k: params[k] for k in teacher["params"]}
        return {**teacher, "params": optax.incremental_update(new, teacher["params"], 1 - self.distil["momentum"])}

    def _of_teacher(self, name: str) -> Mapping:
        """Parameters of the teacher's module `name`; without a teacher, the student's own."""
        if self.has_variable(TEACHER, "params"):
            return self.get_variable(TEACHER, "params").get(name, {})
        return self.variables.get("params", {}).get(name, {})

    def _by_teacher(self, name: str, *args, method=None):
        """What the teacher's module `name` makes; no gradient goes through it."""
        module = getattr(self, name).clone(parent=None)
        made = module.apply({"params": self._of_teacher(name)}, *args, method=method)
        return jax.lax.stop_gradient(made)

    # The loss.

    def _passes(self) -> dict[str, Mapping]:
        views = [f"{kind}_{n}" for kind in ("global", "local") for n in range(self.distil[f"{kind}s"])]
        return {"text": self.text_tower} | dict.fromkeys(views, self.image_tower)

    def _path_noise(self, drawn: Mapping, kind: str, count: int) -> jax.Array | None:
        """By what `count` passes of a kind drop paths, for their rows as `_flat` has them; the teacher drops none."""
        noise = [path_noise(drawn, f"{kind}_{n}") for n in range(count)]
        return None if noise[0] is None else _flat(jnp.stack(noise, axis=1))

    def draw(self, batch: Mapping[str, jax.Array], *, train: bool) -> dict:
        """Of CLIP, and where the views of each picture lie."""
        drawn = super().draw(batch, train=train)
        if not train:
            return drawn
        rows, d = batch["image"].shape[0], self.distil
        near, far = jax.random.split(self.make_rng("mask"))
        return drawn | {
            "globals": views.places(far, rows, self._cut, d["global_area"]),
            "locals": views.places(near, rows, d["locals"], d["local_area"]),
        }

    @property
    def _cut(self) -> int:
        """Global views that are crops."""
        return self.distil["globals"] - (self.distil["first"] == "picture")

    def local(self, batch: Mapping[str, jax.Array], drawn: Mapping, *, train: bool) -> dict:
        """Embeddings of each caption and global view, and of all views as student and teacher see them."""
        inputs = self._inputs(batch)
        if not train:
            return self._embedded(inputs, drawn)
        whole = batch["views"][:, 0] if "views" in batch and self.distil["views"] == "batch" else batch["image"]
        seen_BxGxNxP = self._crops(drawn["globals"], whole, grid_side(self.image_tower))
        if self.distil["first"] == "picture":
            seen_BxGxNxP = jnp.concatenate([inputs["image"][:, None], seen_BxGxNxP], axis=1)
        pooled_BxGxD = self._pooled(seen_BxGxNxP, drawn, "global")
        parts = [pooled_BxGxD]
        if self.distil["locals"]:
            side = self.distil["local_patches"]
            check_pooled(self.image_tower, side**2, f"a local view has {side}x{side} patches (distil.local_patches)")
            local = self._crops(drawn["locals"], whole, side)
            parts.append(self._pooled(local, drawn, "local"))
        student_BxVxD = self.distil_head(jnp.concatenate(parts, axis=1))
        with jax.named_scope(TEACHER):
            tokens = self._by_teacher("image", {"image": _flat(seen_BxGxNxP)})["image"]
            pooled = self._by_teacher("image_head", tokens, method=lambda head, tokens: head.pool(tokens))
            target_BxGxD = _back(self._by_teacher("distil_head", pooled), seen_BxGxNxP)
        return {
            "image": self.image_head.compared(pooled_BxGxD),
            "text": self.text_head(self.text({"text": inputs["text"]}, None, path_noise(drawn, "text"))["text"]),
            "captions": inputs["text"],
            "student": student_BxVxD,
            "teacher": target_BxGxD,
            **self._patches(seen_BxGxNxP, tokens, drawn),
        }

    def _patches(self, seen_BxGxNxP: jax.Array, tokens: Tokens, drawn: Mapping) -> dict:
        """What is said of single patches of global views, of which the teacher has made `tokens`: nothing here."""
        return {}

    def _crops(self, boxes_BxVx4: jax.Array, image: jax.Array, side: int) -> jax.Array:
        """Patches [B, V, n, P] of crops, `side` of them along a side."""
        patch = self.image_tower["patch"]
        cut = views.crops(boxes_BxVx4, image, side * patch)
        x = pixels.patchify(pixels.normalise(255 * _flat(cut), self.stats, whole=False), patch)
        return _back(x, boxes_BxVx4)

    def _pooled(self, patches_BxVxNxP: jax.Array, drawn: Mapping, kind: str) -> jax.Array:
        noise = self._path_noise(drawn, kind, patches_BxVxNxP.shape[1])
        tokens = self.image({"image": _flat(patches_BxVxNxP)}, None, noise)["image"]
        return _back(self.image_head.pool(tokens), patches_BxVxNxP)

    def combine(self, made: Mapping, *, train: bool) -> tuple[jax.Array, dict]:
        """w_contrast * mean contrastive loss of global views + w_distil * distillation; metrics of CLIP (of the first
        view), `distil`, and of the teacher's assignments: entropies and the dimensions that its embeddings fill."""
        if not train:
            return self._contrast(made, train)
        views = range(self.distil["globals"])
        found = [self._contrast({**made, "image": made["image"][:, g]}, train) for g in views]
        contrast, metrics = jnp.mean(jnp.stack([loss for loss, _ in found])), dict(found[0][1])
        pairs_GxV = distillation.others(made["teacher"].shape[1], made["student"].shape[1])
        loss, about = self._distilled("distil_head", made["student"], made["teacher"], pairs_GxV)
        metrics |= {"contrast": contrast, "distil": loss} | {f"teacher_{k}": v for k, v in about.items()}
        metrics["teacher_dimensions"] = distillation.dimensions(made["teacher"])
        return self.weights["contrast"] * contrast + self.weights["distil"] * loss, metrics

    def _distilled(self, name: str, student: jax.Array, teacher: jax.Array, pairs, mean: jax.Array | None = None):
        """The loss of the head `name` and what is to be known of its targets; the head's centre moves on.

        `mean` [D]: of the teacher's embeddings, by which the centre moves (None: of those that are targets).
        """
        d = self.distil
        own_DxK = distillation.prototypes(self.variables["params"][name])
        their_DxK = jax.lax.stop_gradient(distillation.prototypes(self._of_teacher(name)))
        logits = d["prototypes"] * (student.shape[1] + teacher.shape[1])
        parts = distillation.parts_within(self.contrast_mib, student.shape[0], logits, batch_devices())
        temperatures = (d["student_temperature"], d["teacher_temperature"])
        if d["centring"] == "sinkhorn":
            centre_K = distillation.sinkhorn_centre(teacher, their_DxK, temperatures[1], parts, columns_sharded)
        else:
            centres = self.get_variable(TEACHER, "centre") if self.has_variable(TEACHER, "centre") else None
            centre_K = jnp.zeros(d["prototypes"]) if centres is None else centres[name]
            if centres is not None and self.is_mutable_collection(TEACHER):
                mean = jnp.mean(teacher, axis=(0, 1)) if mean is None else mean
                moved_K = distillation.moved_centre(centre_K, mean, their_DxK, d["centre_momentum"])
                # Of both heads: what the other has moved in this step stays moved.
                self.put_variable(TEACHER, "centre", {**self.get_variable(TEACHER, "centre"), name: moved_K})
        return distillation.distilled(
            student, teacher, own_DxK, their_DxK, centre_K, pairs, temperatures, parts, columns_sharded
        )

    def doubt(self, metrics: Mapping[str, float], batch_size: int) -> str:
        """What makes a step useless, in a sentence: of CLIP, or a teacher that has collapsed."""
        if said := super().doubt(metrics, batch_size):
            return said
        if "teacher_entropy" not in metrics:
            return ""
        about = metrics["teacher_entropy"], metrics["teacher_spread"]
        return distillation.collapsed(*about, self.distil["prototypes"], "pictures")


def _flat(x_BxVx: jax.Array) -> jax.Array:
    """[B, V, ...] -> [B * V, ...]."""
    return x_BxVx.reshape(-1, *x_BxVx.shape[2:])


def _back(x: jax.Array, like_BxV: jax.Array) -> jax.Array:
    """[B * V, ...] -> [B, V, ...], V that of `like_BxV`."""
    return x.reshape(like_BxV.shape[:2] + x.shape[1:])
