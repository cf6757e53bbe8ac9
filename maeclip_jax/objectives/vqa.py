"""Visual question answering as classification over a fixed list of answers: finetunes the towers of any objective.

How the two come together, `fusion` (our choice; the paper does not say):

- "fresh": a small transformer that was not pretrained, over the tokens of both. Every objective can have it: one with
  two towers, and M3AE, whose joint encoder then reads one stream at a time. So objectives are compared by what their
  encoders have learnt.
- "decoder": the pretrained cross-modal decoder of MAE-CLIP or M3AE, all tokens visible, without its heads.
- "joint": M3AE's own encoder reads picture and question together.

Sub-trees are called as in pretraining (`image`, `text`, `image_text`, `decoder`), so weights load by path. The answer
head has the form of LXMERT's: Dense, GELU, LayerNorm, Dense.
"""

from __future__ import annotations

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from maeclip_jax.nn.broadcast import broadcast
from maeclip_jax.nn.dense import Dense
from maeclip_jax.nn.pool import Tokens, pooled
from maeclip_jax.nn.pool import features as pool_features
from maeclip_jax.nn.tower import Decoder, Encoder
from maeclip_jax.nn.transformer import Trunk, compute_dtype, layer_norm
from maeclip_jax.objectives.clip import two_towers
from maeclip_jax.objectives.streams import (
    check_smoothing,
    example,
    path_noise,
    paths,
    split_tower,
    stream_inputs,
)

FUSIONS, LOSSES = ("fresh", "decoder", "joint"), ("softmax", "sigmoid")


class Fusion(nn.Module):
    """A transformer over the tokens of both towers, [image | text]; each stream comes back with its padding."""

    width: int
    depth: int
    heads: int
    activation: str = "gelu"
    compute: Mapping | None = None

    @nn.compact
    def __call__(self, tokens: Mapping[str, Tokens]) -> dict[str, Tokens]:
        compute = dict(self.compute or {})
        dtype = compute_dtype(compute.pop("dtype", "float32"))
        parts, pads = [], []
        for stream, t in tokens.items():
            dense = Dense(
                self.width, kernel_init=nn.initializers.xavier_uniform(), dtype=dtype, name=f"project_{stream}"
            )
            modality = self.param(f"modality_{stream}", nn.initializers.normal(0.02), (1, 1, self.width))
            x = dense(t.x)
            parts.append(x + broadcast(modality.astype(dtype), x.shape))
            pads.append(jnp.zeros(t.x.shape[:2], bool) if t.pad is None else t.pad)
        trunk = Trunk(self.depth, self.heads, activation=self.activation, dtype=dtype, **compute, name="trunk")
        x = layer_norm("norm")(trunk(jnp.concatenate(parts, axis=1), jnp.concatenate(pads, axis=1)))
        out, at = {}, 0
        for stream, t in tokens.items():
            out[stream] = Tokens(x[:, at : at + t.x.shape[1]], t.pad)
            at += t.x.shape[1]
        return out


class AnswerHead(nn.Module):
    """[B, D] -> logits [B, answers], float32."""

    answers: int

    @nn.compact
    def __call__(self, x_BxD: jax.Array) -> jax.Array:
        init = nn.initializers.xavier_uniform()
        x = nn.gelu(nn.Dense(2 * x_BxD.shape[-1], kernel_init=init, name="up")(x_BxD), approximate=False)
        return nn.Dense(self.answers, kernel_init=init, name="predict_answer")(layer_norm("norm")(x))


class Vqa(nn.Module):
    """`image_tower`, `text_tower`: as of the pretrained objective (their `pool` does not matter here).

    `answers`: how many there are to choose from. `fusion`: fresh, with `fusion_tower` dict(width, depth, heads) |
    decoder, with the `decoder_tower` of pretraining | joint. `pool`: of either stream after fusion, a word without
    parameters. `loss`: softmax (one right answer) | sigmoid (soft targets of several). `label_smoothing`: share of
    a softmax's target that is spread evenly over all answers, in training alone. `slots`: right answers an example may
    have.
    """

    image_tower: Mapping
    text_tower: Mapping
    answers: int
    fusion: str = "fresh"
    fusion_tower: Mapping | None = None
    decoder_tower: Mapping | None = None
    pool: str = "gap"
    loss: str = "softmax"
    label_smoothing: float = 0.0
    slots: int = 10
    stats: str = "imagenet"
    compute: Mapping | None = None

    contrastive = False
    generative = False
    units = {"loss": ("nats", "lower"), "accuracy": ("%", "higher"), "answerable": ("%", "higher")}
    streams = ("image", "text")

    def setup(self):
        for name, word, valid in (("fusion", self.fusion, FUSIONS), ("loss", self.loss, LOSSES)):
            if word not in valid:
                raise ValueError(f"unknown {name} {word!r}; valid: {', '.join(valid)}")
        check_smoothing(self.label_smoothing, self.loss)
        if self.answers < 2:
            raise ValueError(f"model.answers is {self.answers}; set it to the number of answers in the vocabulary")
        if self.fusion == "joint" and not self._one_encoder:
            raise ValueError("fusion 'joint' needs one encoder of pictures and words, as M3AE's; valid: fresh, decoder")
        if self.fusion == "decoder" and not self.decoder_tower:
            raise ValueError("fusion 'decoder' needs the decoder_tower of pretraining; without one, valid: fresh")
        picture, tower, _ = split_tower(self.image_tower)
        text_embed, _, _ = split_tower(self.text_tower)
        if self._one_encoder:
            self.image_text = Encoder(image=picture, text=text_embed, compute=self.compute, **tower)
        else:
            self.image, self.text = two_towers(self.image_tower, self.text_tower, self.compute)
        if self.fusion == "fresh":
            self.fuse = Fusion(compute=self.compute, **self.fusion_tower)
        elif self.fusion == "decoder":
            shape = {k: self.text_tower[k] for k in ("vocab", "length")}
            self.decoder = Decoder(
                image={k: self.image_tower[k] for k in ("size", "patch")}, text=shape, predict=False,
                projection="shared" if self._one_encoder else "per_stream", compute=self.compute, **self.decoder_tower,
            )  # fmt: skip
        self.head = AnswerHead(self.answers)

    @property
    def _one_encoder(self) -> bool:
        """Whether one trunk reads both streams: then the words have an embedding and no tower of their own."""
        return "depth" not in self.text_tower

    def inputs(self) -> dict[str, jax.ShapeDtypeStruct]:
        """What one example must hold: `answer` are ids (-1: none) and `score` what each is worth."""
        targets = {
            "answer": jax.ShapeDtypeStruct((self.slots,), jnp.int32),
            "score": jax.ShapeDtypeStruct((self.slots,), jnp.float32),
        }
        return example(self.image_tower, self.text_tower) | targets

    def outputs(self) -> dict[str, int]:
        """Names of the data's vocabularies that targets come from, and their sizes."""
        return {"answer": self.answers}

    def draw(self, batch: Mapping[str, jax.Array], *, train: bool) -> dict:
        """Noise by which the towers drop paths of each example; nothing where they drop none."""
        words = self.image_tower if self._one_encoder else self.text_tower
        passes = {"image": self.image_tower} | ({} if self.fusion == "joint" else {"text": words})
        return paths(self, batch, passes) if train else {}

    def encode(self, batch: Mapping[str, jax.Array], drawn: Mapping | None = None) -> dict[str, Tokens]:
        """Tokens of picture and question after they have seen each other; of one of them alone, before.

        `drawn`: of `draw`, in training.
        """
        inputs, drawn = stream_inputs(batch, self.image_tower, self.stats), drawn or {}
        if self.fusion == "joint":
            return self.image_text(inputs, None, path_noise(drawn, "image"))
        tokens = {
            s: (self.image_text if self._one_encoder else getattr(self, s))({s: x}, None, path_noise(drawn, s))[s]
            for s, x in inputs.items()
        }
        if len(tokens) < 2:
            return tokens
        if self.fusion == "fresh":
            return self.fuse(tokens)
        pad_BxT = batch["text"] == 0
        pads = {"image": None, "text": pad_BxT}
        return {s: Tokens(x, pads[s]) for s, x in self.decoder(tokens, None, pad_BxT).items()}

    def embed(self, batch: Mapping[str, jax.Array], drawn: Mapping | None = None) -> dict[str, jax.Array]:
        """Pooled tokens per stream."""
        return {s: pooled(t, self.pool) for s, t in self.encode(batch, drawn).items()}

    def features(self, batch: Mapping[str, jax.Array], pools: tuple[str, ...]) -> dict[str, jax.Array]:
        """Pictures, without a question, as what `pools` make of their tokens: see `nn.pool.features`."""
        tokens = self.encode({"image": batch["image"]})["image"]
        own = embed = lambda t: pooled(t, self.pool)
        return pool_features(tokens, pools, own=own, embed=embed)

    def answer(self, batch: Mapping[str, jax.Array], drawn: Mapping | None = None) -> jax.Array:
        """Logits [B, answers] of pictures and questions."""
        z = self.embed({k: batch[k] for k in ("image", "text")}, drawn)
        return self.head(jnp.concatenate([z["image"], z["text"]], axis=-1))

    def local(self, batch: Mapping[str, jax.Array], drawn: Mapping, *, train: bool) -> dict:
        """Of each example: its loss, whether it has a right answer, and the score of the best answer."""
        logits_BxA = self.answer(batch, drawn)
        with jax.named_scope("answer_loss"):
            target_BxA = targets(batch["answer"], batch["score"], self.answers)
            total_B = target_BxA.sum(axis=-1)
            has_B = total_B > 0
            if self.loss == "softmax":
                share_BxA = target_BxA / jnp.maximum(total_B, 1e-9)[:, None]
                if train and self.label_smoothing:
                    share_BxA = (1 - self.label_smoothing) * share_BxA + self.label_smoothing / self.answers
                loss_B = jax.nn.logsumexp(logits_BxA, axis=-1) - jnp.sum(share_BxA * logits_BxA, axis=-1)
                loss_B = jnp.where(has_B, loss_B, 0)
            else:
                loss_B = jnp.sum(jax.nn.softplus(logits_BxA) - target_BxA * logits_BxA, axis=-1)
            best_B = jnp.argmax(logits_BxA, axis=-1)
            score_B = jnp.take_along_axis(target_BxA, best_B[:, None], axis=-1)[:, 0]
        return {"loss": loss_B, "has": has_B, "score": score_B}

    def combine(self, made: Mapping, *, train: bool) -> tuple[jax.Array, dict]:
        """Cross-entropy over answers; metrics: `accuracy`, the score of the best answer (%), and `answerable` (%).

        softmax: over examples that have a right answer, soft scores made to sum to 1. sigmoid: binary cross-entropy,
        summed over answers, over all examples.
        """
        counted = jnp.maximum(made["has"].sum(), 1) if self.loss == "softmax" else made["has"].shape[0]
        metrics = {"accuracy": 100 * jnp.mean(made["score"]), "answerable": 100 * jnp.mean(made["has"])}
        return jnp.sum(made["loss"]) / counted, metrics

    def __call__(self, batch: Mapping[str, jax.Array], *, train: bool) -> tuple[jax.Array, dict]:
        """`combine` of `local` of the whole batch."""
        return self.combine(self.local(batch, self.draw(batch, train=train), train=train), train=train)


def targets(answer_BxK: jax.Array, score_BxK: jax.Array, answers: int) -> jax.Array:
    """Soft targets [B, answers]: each answer's score, 0 where it is not named; an id of -1 stands for no answer."""
    one_hot = jax.nn.one_hot(answer_BxK, answers, dtype=jnp.float32)
    return jnp.einsum("bk,bka->ba", score_BxK.astype(jnp.float32), one_hot)
