"""A model as an object, for notebooks and scripts: an objective, its parameters, and what belongs to them.

What is given alone comes back alone (one picture: [E]), lists come back with a leading axis ([B, E]); results are
numpy arrays.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from maeclip_jax import errors, objectives
from maeclip_jax.data import tokenizer as tokenizers
from maeclip_jax.data.preprocess import Preprocess, is_one, is_one_text
from maeclip_jax.errors import UserError
from maeclip_jax.evals import mask_classes, pictures, saliency
from maeclip_jax.nn.pool import Tokens, parse
from maeclip_jax.run.features import Surroundings
from maeclip_jax.run.filled import Filled

# Method -> (what an objective must have, in what words one that has not is refused).
_shared = (lambda o: getattr(o, "contrastive", False), "has no space that pictures and texts share")
NEEDS: dict[str, tuple[Callable, str]] = {
    "similarity": _shared,
    "classify": _shared,
    "similarity_map": (lambda o: callable(getattr(o, "dense", None)), _shared[1]),
    "gradcam": _shared,
    "rollout": (lambda o: callable(getattr(o, "features", None)), "has no image tower to listen to"),
    "features": (lambda o: callable(getattr(o, "features", None)), "pools no pictures"),
    "reconstruct": (lambda o: callable(getattr(o, "reconstruct", None)), "has no decoder"),
    "answer": (lambda o: callable(getattr(o, "answer", None)), "answers no questions"),
}


class Model:
    """An objective with its parameters, preprocessing and tokenizer. `maeclip_jax.load` makes one.

    Public: `config`, `objective` (a flax.linen Module), `params`, `mesh`, `preprocess`, `origin` (of the parameters),
    `step` (None: not of a run), `names` (vocabularies it was trained with). Jitted: a method compiles once for each of
    at most four numbers of rows (1, 4, 16, `batch_size`), to which batches are filled up.

    Pictures are given as paths, encoded bytes, PIL pictures, uint8 arrays [H, W, 3], or lists of these (or an array
    [B, H, W, 3]); texts as strings, lists of strings, or ids [B, T]. A method that the objective cannot serve raises
    UserError and names objectives that can.
    """

    def __init__(
        self,
        config,
        objective,
        mesh,
        params,
        *,
        name="",
        origin="",
        step=None,
        names: Mapping | None = None,
        batch_size: int = 64,
    ):
        if batch_size < 1:
            raise UserError(f"batch_size must be at least 1, got {batch_size}")
        self.config, self.objective, self.mesh, self.params = config, objective, mesh, params
        self.name, self.origin, self.step = name, origin, step
        self.names, self.batch_size = dict(names or {}), batch_size
        shapes = objective.inputs()
        reads = "text" in shapes
        tokenizer = tokenizers.of(config) if reads else None
        length = shapes["text"].shape[0] if reads else 0
        self.preprocess = Preprocess(config.preprocess.image, shapes["image"].shape[0], tokenizer, length)
        self._context = Surroundings(objective, mesh, tokenizer, self.names)
        self._compiled = functools.cache(self._compile)

    def __repr__(self) -> str:
        count = sum(x.size for x in jax.tree.leaves(self.params))
        side, length, kind = self.preprocess.side, self.preprocess.length, self.mesh.devices.flat[0].device_kind
        takes = f"pictures {side}x{side}" + (f", texts of {length} tokens" if length else "")
        about = f"{self.config.objective}, {self.origin}, {count:,} parameters, {takes}, on {self.mesh.size} x {kind}"
        return f"Model({self.name!r}: {about})"

    # What it says of pictures and texts.

    def embed(self, images: Any = None, texts: Any = None) -> dict[str, np.ndarray]:
        """{"image": float32 [B, E], "text": float32 [B, E]} of what is given, each modality on its own.

        Of length 1 where pictures and texts share a space (then image @ text.T are cosines); plain pooled tokens of
        an objective that was not trained to compare.
        """
        self._given(images, texts)
        out = {}
        if images is not None:
            made = self._over(self._context.embed, self._images(images))
            out["image"] = _alone(made["image"], is_one(images))
        if texts is not None:
            made = self._over(self._context.embed, self._texts(texts))
            out["text"] = _alone(made["text"], is_one_text(texts))
        return out

    def tokens(self, images: Any = None, texts: Any = None) -> dict[str, Tokens]:
        """{"image": Tokens, "text": Tokens} after the final norm: `x` [B, N, D], `pad` bool [B, N], `cls` [B, D].

        Every token is encoded, nothing is masked. With both, picture i and text i are a pair, which a joint encoder
        (M3AE, VQA) reads together. Patches are in row-major order.
        """
        self._given(images, texts)
        out = self._over(self._context.encode, self._pairs(images, texts))
        return _alone(out, _one_pair(images, texts))

    def features(self, images: Any, pool: str = "own") -> np.ndarray:
        """float32 [B, D] before any projection, for probes. `pool`: "own", "embed", or a pooling word: gap, max, ..."""
        self._need("features")
        call = self._compiled("features", (pool,))
        return _alone(self._over(call, self._images(images))[pool], is_one(images))

    def similarity(self, images: Any, texts: Any) -> np.ndarray:
        """float32 [B, Q], -1 to 1: cosine of every picture with every text."""
        self._need("similarity")
        z = self.embed(images, texts)
        return z["image"] @ z["text"].T

    def classify(self, images: Any, classes: Sequence[str], templates: str | Sequence[str] = "plain") -> np.ndarray:
        """float32 [B, C], rows sum to 1: zero-shot probabilities of class names, at the model's own temperature.

        A class is the mean of its prompts. `templates`: a packaged set ("plain", "photos", "scenes", "imagenet"), a
        file, or a list of texts with "{}" for the name (Radford et al. 2021, section 3.1.4).
        """
        self._need("classify")
        if isinstance(classes, str) or len(classes) < 2:
            raise UserError("classes are a list of two names or more")
        prompts = mask_classes.make_prompts(self._context, classes, templates, self.preprocess.length)
        with self._on_mesh():
            z_CxE = mask_classes.embed_prompts(self._context, self.params, prompts, self.batch_size)
        scale = np.exp(np.asarray(self.params.get("log_logit_scale", 0.0), np.float32))
        logits = scale * self.embed(images=images)["image"] @ z_CxE.T
        logits = np.exp(logits - logits.max(-1, keepdims=True))
        return logits / logits.sum(-1, keepdims=True)

    def reconstruct(
        self, images: Any = None, texts: Any = None, *, keep: float | Mapping[str, float] | None = None, seed: int = 0
    ) -> Filled | list[Filled]:
        """What the decoder fills in where tokens are hidden; of pairs where the objective reconstructs both.

        `keep`: share of tokens that stay visible, 0 < keep <= 1, for all streams or as {"image": 0.25, "text": 1.0};
        default: as in training. `seed`: of which ones. A patch-normalised prediction is painted with the true patch's
        own mean and deviation (as in MAE's pictures).
        """
        self._need("reconstruct")
        streams = tuple(getattr(self.objective, "decode", self.objective.streams))
        given = {"image": images, "text": texts}
        missing = [s for s in streams if given[s] is None]
        if missing:
            raise UserError(f"{self.config.objective} reconstructs {' and '.join(streams)}: give {missing[0]}s, too")
        shares = dict(keep) if isinstance(keep, Mapping) else dict.fromkeys(streams if keep is not None else (), keep)
        mask = dict(self.objective.mask)
        for stream, share in shares.items():
            if stream not in streams or not 0 < share <= 1:
                raise UserError(f"keep {stream}={share}: valid are shares in (0, 1] of {', '.join(streams)}")
            mask[stream] = 1 - share
        batches = list(self._pairs(*(given[s] if s in streams else None for s in ("image", "text"))))
        call = self._compiled("reconstruct", tuple(sorted(mask.items())))
        out = self._over(call, batches, np.int32(seed))
        rows = {k: np.concatenate([b[k] for b in batches]) for k in batches[0]}
        rows |= {f"made_{name}": x for name, x in out.items()}
        made = [Filled.of({k: v[i] for k, v in rows.items()}, self.preprocess.tokenizer)
                for i in range(len(next(iter(rows.values()))))]  # fmt: skip
        return made[0] if _one_pair(*(given[s] if s in streams else None for s in ("image", "text"))) else made

    def answer(self, images: Any, questions: Any) -> list[str] | str:
        """The most likely answer to each question about its picture, from the vocabulary of the training."""
        self._need("answer")
        logits_BxA = self._over(self._compiled("answer", ()), self._pairs(images, questions))
        names = self.names.get("answer") or [f"answer {i}" for i in range(logits_BxA.shape[-1])]
        found = [names[i] for i in logits_BxA.argmax(-1)]
        return found[0] if _one_pair(images, questions) else found

    # Where it looks: one value a patch, [h, w] row-major.

    def similarity_map(self, images: Any, texts: Any) -> np.ndarray:
        """float32 [B, Q, h, w], -1 to 1: cosine of each patch, projected on its own, with each text."""
        self._need("similarity_map")
        return self._maps("similarity_map", (), images, texts)

    def gradcam(self, images: Any, texts: Any, *, pool: str = "own", block: int | None = None) -> np.ndarray:
        """float32 [B, Q, h, w] >= 0: Grad-CAM of the cosine of picture and text (Selvaraju et al. 2017).

        `block`: whose input is weighed, counted from 0 (-1: the last); the number of blocks means the tokens that leave
        the final norm. Default: these, but the last block where a class token is pooled. `pool`: "own" or another
        pooling in its place, with the same weights. See `evals.saliency.gradcam`.
        """
        self._need("gradcam")
        tower = self.objective.image_tower
        if block is None:
            block = -1 if parse(tower["pool"] if pool == "own" else pool)[0] == "cls" else tower["depth"]
        maps = self._maps("gradcam", (pool, saliency.check(self.objective, (pool,), block)), images, texts)
        flat = int((~maps.any((-1, -2))).sum())
        if flat:
            logging.getLogger("maeclip_jax").warning(
                "gradcam: %d of %d maps are 0 everywhere: with pool=%s and block=%d no patch raises the cosine of "
                "picture and text by more than rounding", flat, int(np.prod(maps.shape[:-2])), pool, block,
            )  # fmt: skip
        return maps

    def rollout(self, images: Any, *, pool: str = "own") -> np.ndarray:
        """float32 [B, h, w]: attention roll-out (Abnar & Zuidema 2020); it knows no text."""
        self._need("rollout")
        saliency.check(self.objective, (pool,), 0)
        return _alone(
            pictures.square(self._over(self._compiled("rollout", (pool,)), self._images(images))), is_one(images)
        )

    def overlay(self, image: Any, values_hxw: np.ndarray, *, side: int = 256):
        """A PIL picture of `side` pixels: a map [h, w], from its least (dark) to its greatest value, over a picture.

        A flat map, whose values differ by rounding only, is dark everywhere, and a warning says so.
        """
        values = np.asarray(values_hxw, np.float32)
        if values.ndim != 2:
            raise UserError(f"a map to lay over a picture is [h, w], not {list(values.shape)}: take one of them")
        if pictures.is_flat(values):
            logging.getLogger("maeclip_jax").warning("overlay: the map is flat; its values differ by rounding only")
        from PIL import Image

        seen = np.asarray(
            pictures.as_picture(self.preprocess.picture(image)).resize((side, side), Image.Resampling.BICUBIC)
        )
        return pictures.as_picture(pictures.heat(seen, pictures.upsample(values, side, side)))

    # How.

    def _compile(self, method: str, settings: tuple) -> Callable:
        def plain(objective, params, batch):
            args = (settings,) if settings else ()
            return objective.apply({"params": params}, batch, *args, method=method)

        def reconstruct(objective, params, batch, seed):
            rngs, tokenizer = {"mask": jax.random.key(seed)}, self.preprocess.tokenizer
            words = tokenizer.vocab_size if tokenizer else None
            made = objective.clone(mask=dict(settings))
            return made.apply({"params": params}, batch, words, rngs=rngs, method=method)

        def similarity_map(objective, params, batch, text_QxE):
            return saliency.similarity(objective, params, batch["image"], text_QxE)

        def gradcam(objective, params, batch, text_QxE):
            image, (pool, block) = batch["image"], settings
            text_BxQxE = jnp.broadcast_to(text_QxE[None], (len(image), *text_QxE.shape))
            return saliency.gradcam(objective, params, image, text_BxQxE, pool=pool, block=block)

        def rollout(objective, params, batch):
            return saliency.rollout(objective, params, batch["image"], pool=settings[0])

        own = dict(reconstruct=reconstruct, similarity_map=similarity_map, gradcam=gradcam, rollout=rollout)
        return self._context.compile(own.get(method, plain))

    def _maps(self, method: str, settings: tuple, images: Any, texts: Any) -> np.ndarray:
        text_QxE = np.atleast_2d(self.embed(texts=texts)["text"])
        values_BxQxN = self._over(self._compiled(method, settings), self._images(images), text_QxE)
        values_BxQxhxw = _alone(pictures.square(values_BxQxN), is_one(images))
        return values_BxQxhxw[..., 0, :, :] if is_one_text(texts) else values_BxQxhxw

    def _over(self, function: Callable, batches: Iterable[Mapping[str, np.ndarray]], *rest) -> Any:
        """`function(params, batch, *rest)` over batches of at most `batch_size` rows, put together."""
        parts = []
        for batch in batches:
            rows = len(next(iter(batch.values())))
            size = min(s for s in (1, 4, 16, self.batch_size) if rows <= s)
            filled = {k: np.concatenate([v, np.zeros((size - rows, *v.shape[1:]), v.dtype)]) for k, v in batch.items()}
            with self._on_mesh():
                parts.append(function(self.params, filled | {"_valid": np.arange(size) < rows}, *rest))
        return jax.tree.map(lambda *x: np.concatenate(x), *parts)

    def _on_mesh(self):
        stack = contextlib.ExitStack()
        stack.enter_context(errors.from_modules())
        stack.enter_context(jax.set_mesh(self.mesh))
        return stack

    def _images(self, values: Any) -> Iterator[dict[str, np.ndarray]]:
        return ({"image": x} for x in self.preprocess.batches(values, self.batch_size))

    def _texts(self, values: Any) -> Iterator[dict[str, np.ndarray]]:
        text_BxT, size = self.preprocess.texts(values), self.batch_size
        return ({"text": text_BxT[i : i + size]} for i in range(0, len(text_BxT), size))

    def _pairs(self, images: Any, texts: Any) -> Iterator[dict[str, np.ndarray]]:
        if images is None or texts is None:
            return self._images(images) if texts is None else self._texts(texts)
        found = list(self._images(images)), list(self._texts(texts))
        counts = [sum(len(next(iter(x.values()))) for x in part) for part in found]
        if counts[0] != counts[1]:
            raise UserError(
                f"{counts[0]} pictures and {counts[1]} texts do not pair up: give as many of one as of the other"
            )
        return (a | b for a, b in zip(*found))

    def _given(self, images: Any, texts: Any) -> None:
        if images is None and texts is None:
            raise UserError("nothing was given; valid: images=..., texts=..., or both")

    def _need(self, method: str) -> None:
        """UserError unless the objective can serve `method`."""
        has, why = NEEDS[method]
        if not has(self.objective):
            able = [name for name, kind in objectives.table().items() if has(kind)]
            raise UserError(
                f"{method} is not to be had of {self.config.objective!r}: this objective {why}; "
                f"objectives that can: {', '.join(able)}"
            )


def _alone(tree: Any, one: bool) -> Any:
    return jax.tree.map(lambda x: x[0], tree) if one else tree


def _one_pair(images: Any, texts: Any) -> bool:
    return is_one(images) if images is not None else is_one_text(texts)
