"""SentencePiece models and tokenizer.json files: one set of options for both."""

from __future__ import annotations

import html
import string

from maeclip_jax.data.tokenizer.base import Tokenizer, read
from maeclip_jax.errors import UserError, choose

TRAINED = "python -m maeclip_jax.prepare.vocabulary --name <data set> --out"
FILLS = ("pad", "eos")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


class Pieces(Tokenizer):
    """What SentencePiece models and tokenizer.json files share: the options, and room for 0.

    A type gives `kind`, its name, and `_pieces(text) -> ids`, and calls `_set`. `shift`: what was added to its ids to
    keep 0 free.
    """

    kind: str
    shift: int

    def _set(self, path: str, pieces: int, ids: dict[str, int], options: dict) -> None:
        """`ids`: of pad, bos and eos, -1 where the vocabulary has none."""
        choose(f"fill of tokenizer {self.kind!r}:", options["fill"], dict.fromkeys(FILLS))
        self._canonical, self._lower, self._unescape = (options[k] for k in ("canonical", "lower", "unescape"))
        self.shift = int(ids["pad"] != 0)
        self.vocab_size = pieces + self.shift
        for name in ("bos", "eos"):
            if options[name] and ids[name] < 0:
                raise UserError(f"{path} has no {name} token; leave {name} out")
        self._first = (ids["bos"] + self.shift,) if options["bos"] else ()
        self._last = (ids["eos"] + self.shift,) if options["eos"] else ()
        if options["fill"] == "eos":
            if not self._last:
                raise UserError(f"tokenizer {path}: fill='eos' needs eos=True")
            self._fill = self._last[0]

    def _encode(self, text: str) -> list[int]:
        if self._unescape:
            text = html.unescape(html.unescape(text)).replace("_", " ")
        if self._canonical:
            text = " ".join(text.translate(_NO_PUNCTUATION).lower().split())
        elif self._lower:
            text = text.lower()
        return [i + self.shift for i in self._pieces(text) if i + self.shift]


class SentencePiece(Pieces):
    """A SentencePiece model."""

    kind = "sentencepiece"

    def __init__(
        self, path: str, bos: bool = False, eos: bool = False, fill: str = "pad", canonical: bool = False,
        lower: bool = False, unescape: bool = False,
    ):  # fmt: skip
        import sentencepiece

        model = read(path, f"train one on your captions with `{TRAINED} {path}`")
        try:
            self._library = sentencepiece.SentencePieceProcessor(model_proto=model)
            pieces = self._library.vocab_size()
        except (RuntimeError, OSError) as error:
            raise UserError(f"{path} is not a SentencePiece model: {error}") from None
        if not pieces:
            raise UserError(f"{path} is not a SentencePiece model: it has no pieces")
        ids = {name: getattr(self._library, f"{name}_id")() for name in ("pad", "bos", "eos")}
        self._set(
            path, pieces, ids, dict(bos=bos, eos=eos, fill=fill, canonical=canonical, lower=lower, unescape=unescape)
        )

    def _pieces(self, text: str) -> list[int]:
        return self._library.encode(text)

    def decode(self, ids) -> str:
        return self._library.decode([i - self.shift for i in self._ids(ids)])

    def token(self, i: int) -> str:
        i = self._check(i) - self.shift
        return "<pad>" if i < 0 else self._library.id_to_piece(i)


class Json(Pieces):
    """A tokenizer.json. Its special tokens are those called <pad>, <bos> or <s>, <eos> or </s>."""

    kind = "json"

    def __init__(
        self, path: str, bos: bool = False, eos: bool = False, fill: str = "pad", canonical: bool = False,
        lower: bool = False, unescape: bool = False,
    ):  # fmt: skip
        from tokenizers import Tokenizer as Library

        data = read(path, "it is what transformers saves beside its models")
        try:
            self._library = Library.from_str(data.decode("utf-8"))
        except Exception as error:  # the library raises Exception itself
            raise UserError(f"{path} is not a tokenizer.json: {' '.join(str(error).split())[:200]}") from None
        self._library.no_padding()
        self._library.no_truncation()
        names = dict(pad=("<pad>",), bos=("<bos>", "<s>"), eos=("<eos>", "</s>"))
        found = {k: [i for n in v if (i := self._library.token_to_id(n)) is not None] for k, v in names.items()}
        ids = {k: v[0] if v else -1 for k, v in found.items()}
        pieces = 1 + max(self._library.get_vocab().values(), default=-1)
        if not pieces:
            raise UserError(f"{path} is not a tokenizer.json: it has no pieces")
        self._set(
            path, pieces, ids, dict(bos=bos, eos=eos, fill=fill, canonical=canonical, lower=lower, unescape=unescape)
        )

    def _pieces(self, text: str) -> list[int]:
        return self._library.encode(text, add_special_tokens=False).ids

    def decode(self, ids) -> str:
        return self._library.decode([i - self.shift for i in self._ids(ids)]).strip()

    def token(self, i: int) -> str:
        i = self._check(i) - self.shift
        return "<pad>" if i < 0 else self._library.id_to_token(i) or ""
