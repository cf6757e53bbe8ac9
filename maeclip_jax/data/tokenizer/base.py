"""What all tokenizers share: cutting, filling up, special tokens, and the files that they are made of."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from maeclip_jax.errors import UserError

PACKAGED = {"scenes": "vocab/scenes.txt"}  # in the folder of `data`


class Tokenizer:
    """What all types share. A type gives `_encode(text) -> ids`, `vocab_size`, `decode` and `token`."""

    pad_id = 0
    vocab_size: int
    _first: tuple[int, ...] = ()
    _last: tuple[int, ...] = ()
    _fill = 0

    def __call__(self, text: str | bytes, length: int) -> np.ndarray:
        """int32 [length]; special tokens stay when the text is cut."""
        room = max(0, length - len(self._first) - len(self._last))
        ids = [*self._first, *self._encode(_clean(text))[:room], *self._last][:length]
        out = np.full(length, self._fill, np.int32)
        out[: len(ids)] = ids
        return out

    def count(self, text: str | bytes) -> int:
        """Tokens of the whole text, special ones included: where these are more than `length`, it is cut."""
        return len(self._first) + len(self._encode(_clean(text))) + len(self._last)

    def _ids(self, ids: Iterable[int]) -> list[int]:
        """The ids that decode uses: without padding, special tokens and ids out of range."""
        drop = {0, *self._first, *self._last}
        return [i for i in map(int, ids) if i not in drop and i < self.vocab_size]

    def _check(self, i: int) -> int:
        if not 0 <= i < self.vocab_size:
            raise UserError(
                f"token {i} is not in the vocabulary of {self.vocab_size}; valid: 0 to {self.vocab_size - 1}"
            )
        return int(i)


def _clean(text: str | bytes) -> str:
    """Text that can be written as UTF-8: lone surrogates and broken bytes are left out."""
    data = text.encode("utf-8", "ignore") if isinstance(text, str) else bytes(text)
    return data.decode("utf-8", "ignore")


def read(path: str, otherwise: str) -> bytes:
    """The bytes of a file; `otherwise` tells the user what to do if it does not exist."""
    from etils import epath

    file = epath.Path(__file__).parents[1] / PACKAGED[path] if path in PACKAGED else epath.Path(path)
    try:
        return file.read_bytes()
    except FileNotFoundError:
        raise UserError(f"tokenizer file {str(path)!r} is not there; {otherwise}") from None
    except OSError as error:  # a folder, no permission
        raise UserError(f"tokenizer file {str(path)!r} cannot be read: {error}") from None


def lines(data: bytes) -> list[str]:
    r"""The lines of UTF-8 text, which end at \n or \r\n alone: U+2028 and U+0085 are tokens with a line of their own.

    UnicodeDecodeError for what is not UTF-8.
    """
    return [line.removesuffix("\r") for line in data.decode("utf-8").removesuffix("\n").split("\n")]
