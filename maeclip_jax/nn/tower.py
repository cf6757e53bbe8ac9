"""Encoder: one trunk over one or more streams. Decoder: one trunk over all streams it is given, with mask tokens.

A MAE encoder has the stream {image}, a text tower {text}, M3AE's joint encoder {image, text}: the same module.
Streams come and go as dicts keyed "image" and "text", always in that order in the sequence, after the class token.
"""

from __future__ import annotations

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from maeclip_jax.nn.broadcast import broadcast
from maeclip_jax.nn.dense import Dense
from maeclip_jax.nn.embed import PatchEmbed, TextEmbed, sincos_1d, sincos_2d
from maeclip_jax.nn.mask import Kept, hidden_ids, restore, take
from maeclip_jax.nn.pool import Tokens
from maeclip_jax.nn.transformer import Trunk, compute_dtype, layer_norm

STREAMS = ("image", "text")
PADDINGS = ("masked", "attended")


def _normal(std: float = 0.02):
    return nn.initializers.normal(std)


class Encoder(nn.Module):
    """Embeds the kept tokens of its streams, runs one trunk over [cls | image | text], and splits them again.

    `image`: dict(size, patch, position, patch_bias). `text`: dict(vocab, length, position, std, padding). Either may be
    None; with both, each stream has a learned modality embedding (M3AE). `padding`: masked (no token attends to
    id 0) | attended (id 0 is a word like any other, as in SigLIP). `cls`: a class token comes first, with a
    position of its own if `cls_position`. `norm_pre`: the embeddings are normalised before the trunk (openai/CLIP).
    `eps`: of every LayerNorm. `drop_path`: see `Trunk`. `compute`: dtype, layers, remat, attention, mlp of the trunk.
    """

    width: int
    depth: int
    heads: int
    image: Mapping | None = None
    text: Mapping | None = None
    mlp_ratio: float = 4.0
    activation: str = "gelu"
    cls: bool = False
    causal: bool = False
    cls_position: bool = False
    norm_pre: bool = False
    eps: float = 1e-6
    drop_path: float = 0.0
    compute: Mapping | None = None

    @nn.compact
    def __call__(
        self,
        inputs: Mapping[str, jax.Array],
        kept: Mapping[str, Kept] | None = None,
        noise_BxLx2: jax.Array | None = None,
        hidden: tuple[jax.Array, jax.Array] | None = None,
    ) -> dict[str, Tokens]:
        """`inputs`: image = patches [B, N, P], text = ids [B, T] with 0 = pad; absent streams are simply not there.

        `kept`: per stream, which tokens to encode (None: all). `noise_BxLx2`: which paths an example drops, of
        `transformer.draw_paths` (None: none). `hidden`: (mask_BxN, token_D), which patches a token stands for. Patches
        that are a smaller square than the tower's are a smaller picture. Returns per stream the tokens after the final
        norm, in the order of `kept.keep_BxK`, with their padding and the shared class token.
        """
        compute = dict(self.compute or {})
        dtype = compute_dtype(compute.pop("dtype", "float32"))
        kept = kept or {}
        both = self.image is not None and self.text is not None
        unknown = set(inputs) - {s for s in STREAMS if getattr(self, s) is not None}
        if unknown or not inputs:
            raise ValueError(f"this encoder takes {[s for s in STREAMS if getattr(self, s)]}, got {sorted(inputs)}")

        parts, pads, sizes = [], [], {}
        batch = next(iter(inputs.values())).shape[0]
        if self.cls:
            cls_D = self.param("cls", _normal(), (self.width,))
            if self.cls_position:
                cls_D = cls_D + self.param("cls_position", _normal(), (self.width,))  # += would write into NumPy's
            parts.append(broadcast(cls_D.astype(dtype), (batch, 1, self.width)))
            pads.append(jnp.zeros((batch, 1), bool))
        for stream in (s for s in STREAMS if s in inputs):
            ids_BxK = kept[stream].keep_BxK if stream in kept else None
            value = inputs[stream] if ids_BxK is None else take(inputs[stream], ids_BxK)
            instead = (hidden,) if hidden is not None and stream == "image" else ()
            x_BxKxD = self._embed(stream, dtype)(value, ids_BxK, *instead)
            if both:
                modality = self.param(f"modality_{stream}", _normal(), (1, 1, self.width)).astype(dtype)
                x_BxKxD += broadcast(modality, x_BxKxD.shape)
            parts.append(x_BxKxD)
            pads.append(value == 0 if self._has_padding(stream) else jnp.zeros(value.shape[:2], bool))
            sizes[stream] = value.shape[1]
        pad = jnp.concatenate(pads, axis=1) if "text" in inputs else None  # pictures alone have no padding
        x = jnp.concatenate(parts, axis=1)
        if self.norm_pre:
            x = layer_norm("norm_pre", self.eps)(x).astype(dtype)
        shape = dict(mlp_ratio=self.mlp_ratio, activation=self.activation, causal=self.causal, eps=self.eps)
        trunk = Trunk(self.depth, self.heads, **shape, drop_path=self.drop_path, dtype=dtype, **compute, name="trunk")
        x = layer_norm("norm", self.eps)(trunk(x, pad, noise_BxLx2))

        cls_BxD, at, out = (x[:, 0] if self.cls else None), int(self.cls), {}
        for stream, size in sizes.items():
            here = slice(at, at + size)
            out[stream] = Tokens(x[:, here], pad[:, here] if stream == "text" else None, cls_BxD)
            at += size
        return out

    def _embed(self, stream: str, dtype) -> nn.Module:
        if stream == "image":
            side = grid_side(self.image)
            position, bias = self.image.get("position", "sincos"), self.image.get("patch_bias", True)
            return PatchEmbed(self.width, (side, side), position, dtype, bias, name="embed_image")
        text = {k: v for k, v in self.text.items() if k != "padding"}
        return TextEmbed(self.width, dtype=dtype, **text, name="embed_text")

    def _has_padding(self, stream: str) -> bool:
        word = "attended" if stream == "image" else self.text.get("padding", "masked")
        if word not in PADDINGS:
            raise ValueError(f"unknown padding {word!r}; valid: {', '.join(PADDINGS)}")
        return word == "masked"


class Decoder(nn.Module):
    """Reconstructs every token of the streams it is given from the kept ones (MAE; cross-modal as in M3AE).

    `image`: dict(size, patch); `text`: dict(vocab, length); a stream that is None is not decoded. `projection`: one
    Dense into the decoder for all streams ("shared", M3AE and MAE) or one per encoder ("per_stream", two towers).
    Fixed sine-cosine positions; modality embeddings with two streams. `eps`: of every LayerNorm. `predict`: False
    leaves out mask tokens and heads, for all tokens are there and what comes out are tokens.
    """

    width: int
    depth: int
    heads: int
    image: Mapping | None = None
    text: Mapping | None = None
    projection: str = "shared"
    mlp_ratio: float = 4.0
    activation: str = "gelu"
    eps: float = 1e-6
    predict: bool = True
    compute: Mapping | None = None

    @nn.compact
    def __call__(
        self,
        tokens: Mapping[str, Tokens],
        kept: Mapping[str, Kept] | None = None,
        pad_BxT: jax.Array | None = None,
        hidden_words: bool = False,
    ) -> dict[str, jax.Array]:
        """-> image: predicted patches [B, N, P], text: logits [B, T, vocab], both float32.

        `hidden_words`: logits of the masked words alone, [B, M, vocab] in their order: the product with the vocabulary
        is the dearest of the decoder, and only they are in a loss.
        Without `predict`, `kept` is not needed, and each stream is its tokens [B, N, D] after the final norm.
        `pad_BxT` is the padding of the whole text, needed if the text is decoded: no token attends to padding.
        """
        compute = dict(self.compute or {})
        dtype = compute_dtype(compute.pop("dtype", "float32"))
        if self.projection not in ("shared", "per_stream"):
            raise ValueError(f"unknown projection {self.projection!r}; valid: shared, per_stream")
        streams = [s for s in STREAMS if getattr(self, s) is not None]
        dense = {}

        def project(stream: str, x: jax.Array) -> jax.Array:
            name = "project" if self.projection == "shared" else f"project_{stream}"
            if name not in dense:
                dense[name] = Dense(self.width, kernel_init=nn.initializers.xavier_uniform(), dtype=dtype, name=name)
            return dense[name](x)

        parts, pads, sizes = [], [], {}
        first = tokens[streams[0]]
        if first.cls is not None:  # the class token goes through the decoder and is dropped from its output
            parts.append(project(streams[0], first.cls[:, None]))
            pads.append(jnp.zeros((first.x.shape[0], 1), bool))
        for stream in streams:
            x_BxNxD = project(stream, tokens[stream].x)
            if self.predict:
                fill_D = self.param(f"mask_{stream}", _normal(), (self.width,))
                x_BxNxD = restore(x_BxNxD, fill_D, kept[stream].restore_BxN)
            x_BxNxD += jnp.asarray(self._positions(stream))[None, : x_BxNxD.shape[1]].astype(dtype)
            if len(streams) > 1:
                modality = self.param(f"modality_{stream}", _normal(), (1, 1, self.width)).astype(dtype)
                x_BxNxD += broadcast(modality, x_BxNxD.shape)
            parts.append(x_BxNxD)
            pads.append(pad_BxT if stream == "text" else jnp.zeros(x_BxNxD.shape[:2], bool))
            sizes[stream] = x_BxNxD.shape[1]
        pad = jnp.concatenate(pads, axis=1) if "text" in streams else None
        shape = dict(mlp_ratio=self.mlp_ratio, activation=self.activation, eps=self.eps)
        trunk = Trunk(self.depth, self.heads, **shape, dtype=dtype, **compute, name="trunk")
        x = layer_norm("norm", self.eps)(trunk(jnp.concatenate(parts, axis=1), pad)).astype(dtype)

        out, at = {}, x.shape[1] - sum(sizes.values())
        for stream, size in sizes.items():
            if not self.predict:
                out[stream] = x[:, at : at + size]
                at += size
                continue
            head = Dense(
                self._outputs(stream),
                kernel_init=nn.initializers.xavier_uniform(),
                dtype=dtype,
                name=f"predict_{stream}",
            )
            x_BxNxD = x[:, at : at + size]
            if stream == "text" and hidden_words:
                x_BxNxD = take(x_BxNxD, hidden_ids(kept[stream]))
            out[stream] = head(x_BxNxD).astype(jnp.float32)
            at += size
        return out

    def _positions(self, stream: str):
        if stream == "image":
            side = grid_side(self.image)
            return sincos_2d(side, side, self.width)
        return sincos_1d(self.text["length"], self.width)

    def _outputs(self, stream: str) -> int:
        return 3 * self.image["patch"] ** 2 if stream == "image" else self.text["vocab"]


def grid_side(image: Mapping) -> int:
    """Patches along one side of the square picture; ValueError if they do not fit."""
    if image["size"] % image["patch"]:
        raise ValueError(f"picture size {image['size']} does not divide by patch size {image['patch']}")
    return image["size"] // image["patch"]
