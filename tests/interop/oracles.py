"""M3AE and big_vision's two towers in float64, on parameters by their own names, written from their descriptions."""

from __future__ import annotations

import contextlib

import jax
import jax.numpy as jnp
import numpy as np


@contextlib.contextmanager
def float64():
    """Arithmetic of an oracle: 64 bits, and shapes may broadcast."""
    with jax.enable_x64(True), jax.numpy_rank_promotion("allow"):
        yield


def tree(flat: dict[str, np.ndarray], prefix: str) -> dict:
    """{rest of the name: array} of what is under `prefix`."""
    return {k.removeprefix(prefix): v for k, v in flat.items() if k.startswith(prefix)}


def dense(x, p, name):
    return x @ p[f"{name}/kernel"] + p[f"{name}/bias"]


def norm(x, p, name):
    centred = x - x.mean(-1, keepdims=True)
    return centred / jnp.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * p[f"{name}/scale"] + p[f"{name}/bias"]


def gelu(x):
    return x / 2 * (1 + jnp.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def attend(q, k, v, heads, hidden=None):
    """[B, N, D] each -> [B, N, D]; keys that are `hidden` [B, N] get a weight of 0."""

    def split(x):
        return x.reshape(*x.shape[:2], heads, -1).swapaxes(1, 2)

    scores = split(q) @ split(k).swapaxes(2, 3) / np.sqrt(q.shape[-1] / heads)
    if hidden is not None:
        scores = jnp.where(hidden[:, None, None], -jnp.inf, scores)
    weights = jnp.exp(scores - scores.max(-1, keepdims=True))
    y = weights / weights.sum(-1, keepdims=True) @ split(v)
    return y.swapaxes(1, 2).reshape(q.shape[0], q.shape[1], -1)


def sincos(at, width):
    angle = at[:, None] / 10000 ** (np.arange(width // 2) / (width / 2))
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=1)


def grid_sincos(side, width):
    row, column = np.divmod(np.arange(side * side), side)
    return np.concatenate([sincos(column, width // 2), sincos(row, width // 2)], axis=1)


def m3ae_trunk(x, p, part, heads, hidden):
    layer = 0
    while f"{part}/Block_{layer}/LayerNorm_0/scale" in p:
        b = tree(p, f"{part}/Block_{layer}/")
        qkv = jnp.split(dense(norm(x, b, "LayerNorm_0"), b, "Attention_0/Dense_0"), 3, axis=-1)
        x = x + dense(attend(*qkv, heads, hidden), b, "Attention_0/Dense_1")
        up = gelu(dense(norm(x, b, "LayerNorm_1"), b, "TransformerMLP_0/fc1"))
        x, layer = x + dense(up, b, "TransformerMLP_0/fc2"), layer + 1
    return norm(x, p, f"{part}/LayerNorm_0")


def m3ae(p, patches, text, pad, order, keep, heads):
    """(image prediction, text prediction) of M3AE: `order` stream -> places by noise [N], of which the first `keep` are
    kept, in that order; one order for the batch. `heads`: of (encoder, decoder)."""
    batch, width, small = len(patches), p["cls_token"].shape[-1], p["image_mask_embedding"].shape[-1]
    side = round(patches.shape[1] ** 0.5)
    at = dict(image=grid_sincos(side, width), text=sincos(np.arange(text.shape[1]), width))
    embedded = dict(image=dense(patches, p, "image_embedding"), text=p["text_embedding/embedding"][text])
    pads = dict(image=np.zeros(patches.shape[:2], bool), text=pad)
    parts, hidden = [jnp.broadcast_to(p["cls_token"], (batch, 1, width))], [np.zeros((batch, 1), bool)]
    for s in ("image", "text"):
        kept = order[s][: keep[s]]
        parts.append((embedded[s] + at[s] + p[f"encoder_{s}_type_embedding"])[:, kept])
        hidden.append(pads[s][:, kept])
    x = m3ae_trunk(jnp.concatenate(parts, 1), p, "encoder", heads[0], np.concatenate(hidden, 1))

    x = dense(x, p, "decoder_input_projection")
    places = dict(image=grid_sincos(side, small), text=sincos(np.arange(text.shape[1]), small))
    parts, first = [x[:, :1]], 1
    for s in ("image", "text"):
        length = len(order[s])
        filled = jnp.broadcast_to(p[f"{s}_mask_embedding"], (batch, length, small))
        filled = filled.at[:, order[s][: keep[s]]].set(x[:, first : first + keep[s]])
        parts.append(filled + places[s] + p[f"decoder_{s}_type_embedding"])
        first += keep[s]
    hidden = np.concatenate([np.zeros((batch, 1), bool), pads["image"], pads["text"]], 1)
    x = m3ae_trunk(jnp.concatenate(parts, 1), p, "decoder", heads[1], hidden)
    image, text = x[:, 1 : 1 + len(order["image"])], x[:, 1 + len(order["image"]) :]
    return dense(image, p, "decoder_image_output/Dense_0"), dense(text, p, "decoder_text_output/Dense_0")


def m3ae_losses(predicted, logits, patches, text, pad, order, keep):
    """(mean squared error on masked patches, cross entropy on masked words that are not padding, per sample and then
    over all)."""
    gone = order["image"][keep["image"] :]
    image = jnp.mean((predicted[:, gone] - patches[:, gone]) ** 2)
    counts = np.zeros(text.shape, bool)
    counts[:, order["text"][keep["text"] :]] = True
    counts &= ~pad
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits, axis=-1), text[..., None], axis=-1)[..., 0]
    per_sample = -jnp.sum(jnp.where(counts, chosen, 0), axis=1) / np.maximum(counts.sum(axis=1), 1e-5)
    return image, per_sample.mean()


def big_vision_attention(q, x, p, name, heads):
    query, key, value = (
        jnp.einsum("bnd,dhw->bnhw", source, p[f"{name}/{word}/kernel"]) + p[f"{name}/{word}/bias"]
        for word, source in (("query", q), ("key", x), ("value", x))
    )
    flat = [y.reshape(*y.shape[:2], -1) for y in (query, key, value)]
    y = attend(*flat, heads) if q is x else attend_one(*flat, heads)
    return (
        jnp.einsum("bnhw,hwd->bnd", y.reshape(*y.shape[:2], heads, -1), p[f"{name}/out/kernel"]) + p[f"{name}/out/bias"]
    )


def attend_one(q, k, v, heads):
    """`attend` of one query [B, 1, D]: as many queries as keys, all the same."""
    return attend(jnp.broadcast_to(q, k.shape), k, v, heads)[:, :1]


def mlp(x, p, name):
    return dense(gelu(dense(x, p, f"{name}/Dense_0")), p, f"{name}/Dense_1")


def big_vision_tower(x, p, trunk, heads):
    """Tokens after the final norm, of embedded ones."""
    layer, attention = 0, "MultiHeadDotProductAttention_0"
    while f"{trunk}/encoderblock_{layer}/LayerNorm_0/scale" in p:
        b = tree(p, f"{trunk}/encoderblock_{layer}/")
        y = norm(x, b, "LayerNorm_0")
        x = x + big_vision_attention(y, y, b, attention, heads)
        x, layer = x + mlp(norm(x, b, "LayerNorm_1"), b, "MlpBlock_0"), layer + 1
    return norm(x, p, f"{trunk}/encoder_norm")


def big_vision_map(x, p, heads):
    probe = jnp.broadcast_to(p["MAPHead_0/probe"], (len(x), 1, x.shape[-1]))
    y = big_vision_attention(probe, x, p, "MAPHead_0/MultiHeadDotProductAttention_0", heads)
    return (y + mlp(norm(y, p, "MAPHead_0/LayerNorm_0"), p, "MAPHead_0/MlpBlock_0"))[:, 0]


def siglip(p, pictures, text, heads):
    """(image embedding, text embedding, loss) of normalised pictures [B, H, W, 3] and ids [B, T]."""
    img, txt = tree(p, "img/"), tree(p, "txt/")
    side = img["embedding/kernel"].shape[0]
    b, rows = len(pictures), pictures.shape[1] // side
    cut = pictures.reshape(b, rows, side, rows, side, 3).swapaxes(2, 3).reshape(b, rows * rows, side, side, 3)
    x = jnp.einsum("bnpqc,pqcd->bnd", cut, img["embedding/kernel"]) + img["embedding/bias"] + img["pos_embedding"]
    z_image = big_vision_map(big_vision_tower(x, img, "Transformer", heads), img, heads)
    x = txt["Embed_0/embedding"][text] + txt["pos_embedding"]
    z_text = dense(big_vision_tower(x, txt, "Encoder_0", heads)[:, -1], txt, "head")
    z_image, z_text = (z / jnp.linalg.norm(z, axis=-1, keepdims=True) for z in (z_image, z_text))
    logits = jnp.exp(p["t"]) * z_image @ z_text.T + p["b"]
    sign = 2 * np.eye(b) - 1
    return z_image, z_text, -jnp.mean(jnp.sum(jax.nn.log_sigmoid(sign * logits), axis=-1))
