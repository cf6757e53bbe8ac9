"""What our text tower shares with transformers.BertModel, forward and gradients.

Shared: ids (test_tokenizer_parity), token and position embeddings and the norm on them, attention with padding, MLP,
exact GELU, LayerNorm. Not shared: BERT normalises after each sum, ours before each part (as CLIP and ViT), so weights
of a BERT cannot be a text tower here. To show that this is the only difference, our parts put together in BERT's order
are compared with the whole of BertModel.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maeclip_jax.interop.transforms import TRANSFORMS
from maeclip_jax.nn.embed import TextEmbed
from maeclip_jax.nn.transformer import Attention, Mlp, layer_norm
from tests.parity import two_towers
from tests.parity.compare import close

torch = pytest.importorskip("torch", reason="parity needs torch and transformers: make test-parity")
transformers = pytest.importorskip("transformers", reason="parity needs torch and transformers: make test-parity")

HEADS, WIDTH, EPS = 4, 48, 1e-12
REFERENCE = "transformers.BertModel, small"


@pytest.fixture(scope="module")
def bert():
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=WIDTH, num_hidden_layers=3, num_attention_heads=HEADS, intermediate_size=96,
        max_position_embeddings=16, hidden_act="gelu", attn_implementation="eager",
    )  # fmt: skip
    model = transformers.BertModel(config, add_pooling_layer=False).eval()
    two_towers.randomise(model)
    return model


@pytest.fixture(scope="module")
def text():
    return two_towers.batch(8, 50, 16)["text"]


def linear(weights, name) -> dict:
    return {"kernel": weights[f"{name}.weight"].T, "bias": weights[f"{name}.bias"]}


def norm(weights, name) -> dict:
    return {"scale": weights[f"{name}.weight"], "bias": weights[f"{name}.bias"]}


def as_ours(weights: dict) -> dict:
    """BERT's weights (or gradients) as parameters of our parts; the embedding of the first segment apart."""
    out = {
        "token": weights["embeddings.word_embeddings.weight"],
        "position": weights["embeddings.position_embeddings.weight"],
        "segment": weights["embeddings.token_type_embeddings.weight"][0],
        "norm": norm(weights, "embeddings.LayerNorm"),
    }
    for i in range(3):
        layer = f"encoder.layer.{i}"
        qkv = {
            leaf: TRANSFORMS["qkv"].into(
                [weights[f"{layer}.attention.self.{x}.{suffix}"] for x in ("query", "key", "value")], HEADS
            )[0]
            for leaf, suffix in (("kernel", "weight"), ("bias", "bias"))
        }
        out[f"layer_{i}"] = {
            "attention": {"qkv": qkv, "out": linear(weights, f"{layer}.attention.output.dense")},
            "norm_1": norm(weights, f"{layer}.attention.output.LayerNorm"),
            "mlp": {
                "up": linear(weights, f"{layer}.intermediate.dense"),
                "down": linear(weights, f"{layer}.output.dense"),
            },
            "norm_2": norm(weights, f"{layer}.output.LayerNorm"),
        }
    return out


def embedded(p, text):
    """Our text embedding and the norm on it; a segment's embedding is a shift of all positions."""
    params = {"token": {"embedding": p["token"]}, "position": p["position"] + p["segment"][None]}
    x = TextEmbed(WIDTH, 50, 16).apply({"params": params}, text)
    return layer_norm("norm", EPS).apply({"params": p["norm"]}, x)


def attended(p, x, pad):
    return Attention(HEADS).apply({"params": p["attention"]}, x, pad)


def widened(p, x):
    return Mlp(96).apply({"params": p["mlp"]}, x)


def in_bert_s_order(p, text):
    x, pad = embedded(p, text), text == 0
    for i in range(3):
        layer = p[f"layer_{i}"]
        x = layer_norm("norm", EPS).apply({"params": layer["norm_1"]}, x + attended(layer, x, pad))
        x = layer_norm("norm", EPS).apply({"params": layer["norm_2"]}, x + widened(layer, x))
    return x


def ours(bert) -> dict:
    return jax.tree.map(jnp.asarray, as_ours(two_towers.numpy_state(bert)))


def flat(tree) -> dict:
    from maeclip_jax.params import flatten

    return flatten(tree)


def test_embeddings(bert, text):
    want = bert.embeddings(input_ids=torch.from_numpy(text).long())
    close(REFERENCE, "embeddings of tokens and positions", embedded(ours(bert), text), want.detach().numpy())


def test_parts_of_a_layer(bert, text):
    x = np.random.default_rng(0).standard_normal((*text.shape, WIDTH)).astype(np.float32)
    layer, p, there = bert.encoder.layer[0], ours(bert)["layer_0"], torch.from_numpy(x)
    hidden = torch.from_numpy(np.where(text == 0, np.finfo(np.float32).min, 0).astype(np.float32))[:, None, None]
    heads = layer.attention.self(there, attention_mask=hidden)[0]
    want = layer.attention.output.dense(heads).detach().numpy()
    close(REFERENCE, "attention with padding", attended(p, x, text == 0), want)
    want = layer.output.dense(layer.intermediate(there)).detach().numpy()
    close(REFERENCE, "MLP", widened(p, x), want)


def test_parts_in_bert_s_order_are_bert(bert, text):
    weight = np.random.default_rng(1).standard_normal((*text.shape, WIDTH)).astype(np.float32)
    weight[text == 0] = 0  # what a padding token becomes is nobody's business
    ids = torch.from_numpy(text).long()
    out = bert(input_ids=ids, attention_mask=(ids != 0).long()).last_hidden_state

    def loss(p):
        made = in_bert_s_order(p, text)
        return jnp.sum(made * weight), made

    (_, made), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(ours(bert))
    words = text != 0
    close(REFERENCE, "tokens, ours in its order", np.asarray(made)[words], out.detach().numpy()[words])
    theirs = two_towers.gradients(bert, torch.sum(out * torch.from_numpy(weight)))
    close(REFERENCE, "all parameters, ours in its order", flat(gradient), flat(as_ours(theirs)), kind="gradient")
