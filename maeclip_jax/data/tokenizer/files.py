"""Our tokenizers as the files that Hugging Face's libraries read: tokenizer.json, tokenizer_config.json.

    files(dict(type="bert", path="scenes"), 24) -> {"tokenizer.json": bytes, ..., "vocab.txt": bytes}

`transformers.AutoTokenizer` gives the ids of ours with them, filled up to the same length with the same id. Three kinds
of texts differ: of HTML entities, those of HTML 4 and the decimal numbers of ASCII are resolved, ours resolves all; an
exclamation mark before another sign is CLIP's own 0 there, 256 in ours; and a tokenizer.json reads <pad> in a text as
padding, which ours leaves out. Beside them lies the vocabulary itself, from which ours is made again.
"""

from __future__ import annotations

import gzip
import html.entities
import json
import struct
from collections.abc import Iterator, Mapping
from typing import Any

from maeclip_jax.data import tokenizer as tokenizers_of_ours
from maeclip_jax.data.tokenizer.base import read
from maeclip_jax.errors import UserError

# The file of each type's vocabulary. tokenizer.json is what is written, whatever the vocabulary is.
VOCABULARY = {
    "bert": "vocab.txt", "clip": "merges.txt", "sentencepiece": "spiece.model", "json": "vocabulary.json", "bytes": "",
}  # fmt: skip
NAMES = ("tokenizer.json", "tokenizer_config.json", *filter(None, VOCABULARY.values()))
ENTITIES = {f"&{name};": chr(code) for name, code in html.entities.name2codepoint.items()}
ENTITIES |= {f"&#{code};": chr(code) for code in range(32, 127)}
_AMPERSAND = "&(amp|#38);"  # last, so that "&amp;lt;" is "&lt;" after the first of two rounds, as html.unescape has it
# Types of pieces in a SentencePiece model.
_NORMAL, _UNKNOWN, _CONTROL, _USER, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6


def files(spec: Mapping[str, Any], length: int, *, attended: bool = False) -> dict[str, bytes]:
    """{name: content} of the tokenizer of `spec` (config.tokenizer) for texts of `length` tokens.

    `attended`: padding is read like any other token, so that no attention mask is made. UserError: no such file, a file
    of another kind, a SentencePiece model that tokenizer.json cannot express.
    """
    made = tokenizers_of_ours.make(spec)
    kind = spec["type"]
    library, names = _WRITERS[kind](made, spec)
    first, last = ([names[i] for i in ids] for ids in (made._first, made._last))
    if first or last:
        from tokenizers import processors

        library.post_processor = processors.TemplateProcessing(
            single=[*first, "$A", *last], special_tokens=[(names[i], i) for i in (*made._first, *made._last)]
        )
    # A text may spell a special token: ours reads it as one in a tokenizer.json, unless its punctuation is taken away.
    apart = kind != "json" or bool(spec.get("canonical"))
    pad = [names[0]] if kind != "clip" else []  # CLIP's 0 is a sign, too
    library.add_special_tokens([*dict.fromkeys([*pad, *first, *last])])
    roles = dict(pad_token=names[made._fill], unk_token=names.get("unk"))
    roles |= dict(zip(("bos_token", "cls_token"), (first * 2)[:2])) | dict(zip(("eos_token", "sep_token"), last * 2))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": length, "padding_side": "right",
        "truncation_side": "right", "clean_up_tokenization_spaces": False, "split_special_tokens": apart,
        "model_input_names": ["input_ids"] if attended else ["input_ids", "attention_mask"],
        **{role: name for role, name in roles.items() if name is not None},
    }  # fmt: skip
    out = {"tokenizer.json": library.to_str(pretty=True), "tokenizer_config.json": json.dumps(config, indent=2) + "\n"}
    out = {name: text.encode() for name, text in out.items()}
    return out | ({VOCABULARY[kind]: _vocabulary(spec)} if VOCABULARY[kind] else {})


def saved(spec: Mapping[str, Any]) -> dict[str, Any]:
    """`spec` with the name of its vocabulary among `files` as its path, without options that are off."""
    options = {k: v for k, v in spec.items() if k not in ("type", "path") and v is not False}
    return dict(type=spec["type"], path=VOCABULARY[spec["type"]]) | options


def _vocabulary(spec: Mapping[str, Any]) -> bytes:
    data = read(spec["path"], "")
    return gzip.decompress(data) if spec["type"] == "clip" and data[:2] == b"\x1f\x8b" else data


def _unescaped() -> list:
    """html.unescape, twice, for ENTITIES, as normalisers."""
    from tokenizers import Regex, normalizers

    plain = [normalizers.Replace(a, b) for a, b in ENTITIES.items() if b != "&"]
    return [*plain, normalizers.Replace(Regex(_AMPERSAND), "&")] * 2


def _options(spec: Mapping[str, Any]) -> list:
    """What `pieces.Pieces` does to a text before it is split, as normalisers."""
    from tokenizers import Regex, normalizers

    steps = [*_unescaped(), normalizers.Replace("_", " ")] if spec.get("unescape") else []
    if spec.get("canonical"):
        steps += [normalizers.Replace(Regex(r"[!-/:-@\[-`{-~]"), ""), normalizers.Lowercase()]
        return [*steps, normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    return [*steps, normalizers.Lowercase()] if spec.get("lower") else steps


def _padding(names) -> str:
    """A name for an id 0 that a vocabulary with `names` does not have."""
    return next(name for name in ("<pad>", "<padding>", "<padding 0>") if name not in names)


def _bert(made, spec) -> tuple[Any, dict]:
    return made._library, {0: "[PAD]", "unk": "[UNK]"} | {i: made.token(i) for i in (*made._first, *made._last)}


def _clip(made, spec) -> tuple[Any, dict]:
    from tokenizers import Regex, decoders, normalizers

    space = normalizers.Replace(Regex(r"\s+"), " ")
    made._library.normalizer = normalizers.Sequence(
        [normalizers.NFC(), *_unescaped(), space, normalizers.Strip(), normalizers.Lowercase()]
    )
    made._library.decoder = decoders.Sequence([decoders.Replace("</w>", "Ġ"), decoders.ByteLevel()])
    return made._library, {i: made.token(i) for i in (0, *made._first, *made._last)}


def _bytes(made, spec) -> tuple[Any, dict]:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = _byte_letters()
    library = Tokenizer(models.BPE({"<pad>": 0} | {letters[b]: b + 1 for b in range(256)}, []))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    library.decoder = decoders.ByteLevel()
    return library, {0: "<pad>"}


def _byte_letters() -> list[str]:
    """The letter that stands for each byte in byte-level vocabularies: printable ones for themselves (GPT-2)."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(b if b in printable else next(others)) for b in range(256)]


def _sentencepiece(made, spec) -> tuple[Any, dict]:
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    pieces, trainer, normalizer = _model(read(spec["path"], ""))
    if trainer.get(24, 0):
        raise UserError(
            f"tokenizer {spec['path']!r} was trained with treat_whitespace_as_suffix, which tokenizer.json cannot "
            "express; valid: config.tokenizer.type=bert, clip or bytes, or a model trained without it"
        )
    rows = [(_padding({piece for piece, *_ in pieces}), 0.0, _CONTROL)] * made.shift + pieces
    unknown = next(i for i, (_, _, kind) in enumerate(rows) if kind == _UNKNOWN)
    if trainer.get(3, 1) == 2:
        ids = {piece: i for i, (piece, _, _) in enumerate(rows)}
        model = models.BPE(ids, _merges(rows), unk_token=rows[unknown][0], fuse_unk=True,
                           byte_fallback=bool(trainer.get(35, 0)))  # fmt: skip
    else:
        scored = [(piece, score) for piece, score, _ in rows]
        model = models.Unigram(scored, unk_id=unknown, byte_fallback=bool(trainer.get(35, 0)))
    library = Tokenizer(model)
    steps = _options(spec)
    steps += [normalizers.Precompiled(normalizer[2])] if normalizer.get(2) else []
    if normalizer.get(4, 1):
        steps += [normalizers.Replace(Regex(" {2,}"), " "), normalizers.Replace(Regex("^ | $"), "")]
    elif normalizer.get(3, 1):  # Metaspace puts none in front of a space, SentencePiece does
        steps += [normalizers.Replace(Regex("^ "), "  ")]
    library.normalizer = normalizers.Sequence(steps)
    user = [] if spec.get("canonical") else [piece for piece, _, kind in rows if kind == _USER]  # in brackets: "<n>"
    user = [piece for piece in user if piece == piece.lower() or not spec.get("lower")]
    library.add_tokens([AddedToken(piece, normalized=True) for piece in user])
    # "first" asks where a part began before anything was stripped; "always" also means parts behind an added token.
    scheme = ("first" if user else "always") if normalizer.get(3, 1) else "never"
    metaspace = dict(replacement="▁", prepend_scheme=scheme, split=False)
    # A text may spell "</s>", which does not end the text: the piece of that name must not be found in it.
    hidden = "|".join(_escaped(piece[1:]) for piece, _, kind in rows if kind in (_CONTROL, _UNKNOWN) and piece)
    apart = pre_tokenizers.Split(Regex(f"<(?={hidden})"), behavior="merged_with_previous")
    library.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(**metaspace), apart])
    library.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    names = {i: piece for i, (piece, _, _) in enumerate(rows)}
    return library, names | {"unk": rows[unknown][0]}


def _json(made, spec) -> tuple[Any, dict]:
    """The file's own normaliser, splitting and model, behind our options; ids are shifted where ours are."""
    from tokenizers import Tokenizer, normalizers

    found = json.loads(read(spec["path"], ""))
    model, added = found["model"], found.get("added_tokens") or []
    rows = model["vocab"]  # {piece: id}, or [[piece, score], ...] whose places are the ids
    listed = isinstance(rows, list)
    if made.shift:
        pad = _padding({*(row[0] for row in rows)} if listed else rows)
        if listed:
            model["vocab"] = [[pad, min(score for _, score in rows)], *rows]
            model["unk_id"] = None if model.get("unk_id") is None else model["unk_id"] + 1
        else:
            model["vocab"] = {pad: 0} | {piece: i + 1 for piece, i in rows.items()}
        for token in added:
            token["id"] += 1
    found |= dict(post_processor=None, padding=None, truncation=None)
    library = Tokenizer.from_str(json.dumps(found))
    theirs = [library.normalizer] if library.normalizer else []
    if options := _options(spec):
        library.normalizer = normalizers.Sequence([*options, *theirs])
    names = {i: library.id_to_token(i) for i in (0, *made._first, *made._last)}
    unknown = library.id_to_token(model["unk_id"]) if model.get("unk_id") is not None else model.get("unk_token")
    return library, names | ({"unk": unknown} if unknown else {})


def _escaped(text: str) -> str:
    return "".join(c if c.isalnum() else f"\\{c}" for c in text)


def _merges(rows) -> list[tuple[str, str]]:
    """Pairs of pieces that make a piece, the best piece first."""
    ids = {piece: i for i, (piece, _, kind) in enumerate(rows) if kind == _NORMAL}
    found = []
    for piece, i in ids.items():
        pairs = ((piece[:k], piece[k:]) for k in range(1, len(piece)))
        found += [(-rows[i][1], ids[a], ids[b], (a, b)) for a, b in pairs if a in ids and b in ids]
    return [pair for *_, pair in sorted(found)]


def _model(data: bytes) -> tuple[list[tuple[str, float, int]], dict, dict]:
    """([(piece, score, type)], trainer's settings, normalizer's settings) of a SentencePiece model, by field number.

    Source: google/sentencepiece, src/sentencepiece_model.proto.
    """
    pieces, trainer, normalizer = [], {}, {}
    for field, value in _fields(data):
        if field == 1:
            row = dict(_fields(value))
            score = struct.unpack("<f", row[2])[0] if 2 in row else 0.0
            pieces.append((row.get(1, b"").decode(), score, row.get(3, _NORMAL)))
        elif field == 2:
            trainer = dict(_fields(value))
        elif field == 3:
            normalizer = dict(_fields(value))
    return pieces, trainer, normalizer


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """(number, value) of every field of a protocol buffer: integers, or bytes of what is longer or a float."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte, at = data[at], at + 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(data):
        field, wire = divmod(varint(), 8)
        if wire == 0:
            yield field, varint()
            continue
        size = varint() if wire == 2 else {1: 8, 5: 4}[wire]
        yield field, data[at : at + size]
        at += size


_WRITERS = {"bert": _bert, "clip": _clip, "sentencepiece": _sentencepiece, "json": _json, "bytes": _bytes}
