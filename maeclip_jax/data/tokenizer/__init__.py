"""Tokenizers behind one switch: text to int32 ids, where 0 is always padding and nothing else.

`make(dict(type=..., path=..., ...))` gives an object with

    vocab_size, pad_id (always 0)
    tokenizer(text, length) -> int32 [length]     cut at `length`, filled up with 0
    tokenizer.count(text) -> int                  of a text that is not cut
    tokenizer.decode(ids) -> str                  readable text without padding and special tokens
    tokenizer.token(id) -> str                    one entry of the vocabulary

Types (the splitting is done by the libraries `tokenizers` and `sentencepiece`; all pickle, and all accept bytes,
lone surrogates and control characters, since captions come from the web):

- `bert`           WordPiece of a vocabulary file, lower-cased and stripped of accents as BERT does. path="scenes" is
                   the small vocabulary that comes with the package. Options: cls=True puts [CLS] first; eos=True puts
                   [SEP] last, where it stays when a text is cut.
- `clip`           OpenAI's byte-pair merges (`bpe_simple_vocab_16e6.txt.gz`, or those in a tokenizer.json),
                   lower-cased, HTML entities resolved, white space collapsed: <|startoftext|> ... <|endoftext|>; the
                   end stays when a text is cut.
- `sentencepiece`  a model file. Options: bos=True, eos=True; the end stays when a text is cut. fill="eos" fills texts
                   up with their end. lower=True lower-cases, as SigLIP 2 does; canonical=True also takes punctuation
                   away, as SigLIP does; with unescape=True HTML entities are resolved and underscores become spaces
                   first, as open_clip does for both.
- `json`           the tokenizer.json of the library `tokenizers`, with the same options. Its normaliser, splitting and
                   model are used; what it says of special tokens, padding and length is not: the options do.
- `bytes`          UTF-8 bytes + 1. Needs no file.

Id 0. A batch has no room for a mask of its own: a 0 in `text` *is* the padding. All types but `bytes` need care:

- BERT's files have [PAD] in line 1, which is id 0; a file that has not is refused.
- SentencePiece models often have <unk> as 0. If the model has no padding piece at 0, all its ids are shifted up by
  one (`shift`, 1 or 0); an embedding table from elsewhere must then be given one row more in front. A tokenizer.json
  is treated the same way.
- CLIP has no padding token. OpenAI fills up with 0, which is also "!" where it does not end a word ("!" at the end
  of one is 256). Ids are not shifted, so that CLIP's weights fit as they are; instead the rare inner 0 becomes 256,
  which spells the same character. Of the 29,000 English captions of Multi30k and the 294 templates of CLIP none has
  one: such texts look like "!+". As in transformers, nothing is repaired by ftfy first: openai/CLIP and open_clip have
  curly quotes made straight by it.
"""

from __future__ import annotations

import gzip
import html
import json
import re
import unicodedata

from maeclip_jax.data.tokenizer.base import PACKAGED, Tokenizer, lines, read
from maeclip_jax.data.tokenizer.pieces import Json, SentencePiece
from maeclip_jax.errors import UserError, choose, unknown

# Where the files of each type come from.
BERT_FILE = "https://huggingface.co/google-bert/bert-base-uncased/resolve/main/vocab.txt"
CLIP_FILE = "https://github.com/openai/CLIP/raw/main/clip/bpe_simple_vocab_16e6.txt.gz"
# Ids of the usual file of each type, where a table must have a size before the file is there (a pre-flight):
# bert-base-uncased, OpenAI's, what `prepare.vocabulary` makes at most.
USUAL_SIZES = {"bert": 30522, "clip": 49408, "sentencepiece": 4000, "bytes": 257}
_CLIP_MERGES = 49152 - 256 - 2  # the published file has more lines; OpenAI uses these


def of(config):
    """The tokenizer of an experiment's config; None where the config names none.

    Raises UserError if its ids do not fit into the text tower's embedding table.
    """
    if not config.tokenizer.type:
        return None
    tokenizer = make(config.tokenizer)
    table = config.model.get("text_tower", {}).get("vocab")
    if table is not None and tokenizer.vocab_size > table:
        raise UserError(
            f"the tokenizer has {tokenizer.vocab_size} words, the text tower {table}: "
            f"set --config.model.text_tower.vocab={tokenizer.vocab_size}, or another config.tokenizer"
        )
    return tokenizer


def usual_size(spec) -> int:
    """Ids that the tokenizer of `spec` has if its file is the usual one of its type: a size to begin with."""
    if spec.get("path") in PACKAGED:
        return make(spec).vocab_size
    return USUAL_SIZES.get(spec.get("type"), 0)


def size(spec) -> int:
    """Ids that the tokenizer of `spec` has; where its file cannot be read (which is said when it is used), as usual."""
    try:
        return make(spec).vocab_size
    except UserError:
        return usual_size(spec)


def make(spec):
    """The tokenizer of `spec`, a dict with `type`, `path` (not for bytes) and the options of that type.

    An option that is False counts as absent, so that an experiment's tokenizer can be changed by its type and path.
    Raises UserError: unknown type or option, no such file, a file of another kind.
    """
    import inspect

    spec = dict(spec)
    kind = spec.pop("type", None)
    make_type = choose("tokenizer type", kind, TYPES)
    parameters = inspect.signature(make_type).parameters
    if not spec.get("path", True):  # a config may say path="" for bytes
        del spec["path"]
    known = {name for each in TYPES.values() for name in inspect.signature(each).parameters}
    spec = {name: value for name, value in spec.items() if value is not False or name not in known - set(parameters)}
    for name in spec:
        if name not in parameters:
            raise (
                unknown(f"option of tokenizer {kind!r}:", name, parameters)
                if parameters
                else UserError(f"unknown option of tokenizer {kind!r}: {name!r}; it has none")
            )
    if "path" in parameters and "path" not in spec:
        raise UserError(f'tokenizer {kind!r} needs path="FILE"')
    return make_type(**spec)


class Bert(Tokenizer):
    """WordPiece with BERT's normalisation; a word longer than 100 characters is [UNK]."""

    def __init__(self, path: str, cls: bool = False, eos: bool = False):
        from tokenizers import Tokenizer as Library
        from tokenizers import decoders, models, normalizers, pre_tokenizers

        try:
            there = f"packaged are: {', '.join(PACKAGED)}; bert-base-uncased's is {BERT_FILE}"
            vocab = lines(read(path, there))
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is not a BERT vocabulary (one token a line): {error}") from None
        needed = ["[UNK]", *(["[CLS]"] if cls else []), *(["[SEP]"] if eos else [])]
        if not vocab or vocab[0] != "[PAD]" or not set(needed) <= set(vocab):
            raise UserError(
                f"{path} is not a BERT vocabulary: line 1 must be [PAD], and {', '.join(needed)} be in it; "
                f"it begins with {vocab[:1]}"
            )
        ids = {token: i for i, token in enumerate(vocab)}
        self.vocab_size, self._vocab = len(vocab), vocab
        self._library = Library(models.WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=100))
        self._library.normalizer = normalizers.BertNormalizer(lowercase=True)
        self._library.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        self._library.decoder = decoders.WordPiece()
        self._first = (ids["[CLS]"],) if cls else ()
        self._last = (ids["[SEP]"],) if eos else ()

    def _encode(self, text: str) -> list[int]:
        return self._library.encode(text, add_special_tokens=False).ids

    def decode(self, ids) -> str:
        return self._library.decode(self._ids(ids), skip_special_tokens=False)

    def token(self, i: int) -> str:
        return self._vocab[self._check(i)]


class Clip(Tokenizer):
    """OpenAI's byte-pair encoding; see the module's docstring for its id 0."""

    def __init__(self, path: str):
        from tokenizers import Regex, decoders, models, pre_tokenizers
        from tokenizers import Tokenizer as Library

        data = read(path, f"OpenAI's is {CLIP_FILE}")
        merges, vocab = _clip_of_json(path, data) if data[:1] == b"{" else (_clip_merges(path, data), None)
        letters = sorted(pre_tokenizers.ByteLevel.alphabet())  # by code point, which is OpenAI's order
        tokens = [*letters, *(c + "</w>" for c in letters), *map("".join, merges)]
        tokens += ["<|startoftext|>", "<|endoftext|>"]
        self.vocab_size, self._vocab = len(tokens), tokens
        ids = {token: i for i, token in enumerate(tokens)}
        if vocab not in (None, ids):
            raise UserError(f"{path} is not a CLIP vocabulary: its ids are not those of its merges")
        self._library = Library(models.BPE(ids, merges, end_of_word_suffix="</w>"))
        pieces = Regex(r"""'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+""")
        self._library.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(pieces, behavior="removed", invert=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        self._library.decoder = decoders.ByteLevel()
        self._first, self._last = (len(tokens) - 2,), (len(tokens) - 1,)
        self._final = ids["!</w>"]

    def _encode(self, text: str) -> list[int]:
        text = html.unescape(html.unescape(unicodedata.normalize("NFC", text)))
        text = re.sub(r"\s+", " ", text).strip().lower()
        return [i or self._final for i in self._library.encode(text, add_special_tokens=False).ids]

    def decode(self, ids) -> str:
        text = "".join(self._vocab[i] for i in self._ids(ids)).replace("</w>", "Ġ")  # Ġ is the byte of a space
        return self._library.decoder.decode([text]).strip()

    def token(self, i: int) -> str:
        return self._vocab[self._check(i)]


def _clip_merges(path: str, data: bytes) -> list[tuple[str, ...]]:
    """The merges of a text file, which may be gzipped: a #version line, then two parts a line."""
    try:
        first, *rest = lines(gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data)
        merges = [tuple(line.split()) for line in rest[:_CLIP_MERGES]]
        if "version" not in first or not merges or any(len(m) != 2 for m in merges):
            raise ValueError(f"its first lines are {[first, *rest[:1]]}")
        return merges
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} is not a CLIP merges file (a #version line, then two parts a line): {error}") from None


def _clip_of_json(path: str, data: bytes) -> tuple[list[tuple[str, ...]], dict[str, int]]:
    """(merges, ids) of a tokenizer.json, which has the merges as pairs or, from older versions, as lines."""
    try:
        model = json.loads(data)["model"]
        merges = [tuple(m.split() if isinstance(m, str) else m) for m in model["merges"]]
        if model["end_of_word_suffix"] != "</w>" or not merges or any(len(m) != 2 for m in merges):
            raise ValueError("it has no merges of words that end in </w>")
        return merges, dict(model["vocab"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else error
        raise UserError(f"{path} is not the tokenizer.json of a CLIP: {reason}") from None


class Bytes(Tokenizer):
    """UTF-8 bytes: id = byte + 1."""

    vocab_size = 257

    def _encode(self, text: str) -> list[int]:
        return [b + 1 for b in text.encode("utf-8")]

    def decode(self, ids) -> str:
        return bytes(i - 1 for i in self._ids(ids)).decode("utf-8", "ignore")

    def token(self, i: int) -> str:
        i = self._check(i) - 1
        return "<pad>" if i < 0 else chr(i) if 32 <= i < 127 else f"<{i:02x}>"


TYPES = {"bert": Bert, "clip": Clip, "sentencepiece": SentencePiece, "json": Json, "bytes": Bytes}
