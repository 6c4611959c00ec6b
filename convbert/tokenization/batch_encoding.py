"""What a tokenizer's call returns: the model's inputs by name, and the way back from tokens to the text.

Shapes: B texts or windows, T tokens.
"""

from __future__ import annotations

from collections import UserDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding
from typing_extensions import Self

from convbert.errors import TokenizerError

if TYPE_CHECKING:
    import torch


class Span(NamedTuple):
    """Characters of a text, or tokens: the first, and the last + 1."""

    start: int
    end: int


class BatchEncoding(UserDict[str, Any]):
    """Model inputs as a mapping, so that ``model(**encoding)`` works; each can be read as an attribute too.

    Token, word and character indices count from 0. Where the batch holds one text its index may be left
    out: ``char_to_token(7)`` is ``char_to_token(0, 7)``. A number or a slice in place of a name gives the library's
    own results: ``encoding[0].tokens``.

    Args:
        data: lists, arrays or tensors by name; input_ids and attention_mask are (B, T), or (T,) for one text.
        encodings: the library's result of each text or window; what ``|`` makes has none.
    """

    def __init__(self, data: dict[str, Any], encodings: Sequence[Encoding] = ()) -> None:
        super().__init__(data)
        self.encodings = list(encodings)

    def __getitem__(self, key: Any) -> Any:
        if not isinstance(key, (int, slice)):
            return super().__getitem__(key)
        if not self.encodings:
            raise TokenizerError("there is no text's result here: ask the encoding that the tokenizer gave")
        return self.encodings[key]

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["data"][name]
        except KeyError:
            raise AttributeError(f"the encoding has no {name!r}: ask for it in the tokenizer's call") from None

    @property
    def is_fast(self) -> bool:
        """Whether the library's own results are here, as they are of what a tokenizer's call gives."""
        return bool(self.encodings)

    @property
    def n_sequences(self) -> int:
        """2 of pairs, else 1."""
        return self[0].n_sequences

    def tokens(self, batch_index: int = 0) -> list[str]:
        """A text's tokens, T strings."""
        return self[batch_index].tokens

    def word_ids(self, batch_index: int = 0) -> list[int | None]:
        """Each token's word: its place among the given words, or among those that the tokenizer found.

        None for special tokens; the words of a pair's second text count from 0 again.
        """
        return self[batch_index].word_ids

    def sequence_ids(self, batch_index: int = 0) -> list[int | None]:
        """For each token 0 in the first text, 1 in the second text of a pair, None for special tokens."""
        return self[batch_index].sequence_ids

    def char_to_token(
        self, batch_or_char_index: int, char_index: int | None = None, sequence_index: int = 0
    ) -> int | None:
        """The token that holds a character of the text, or of its word where words were given."""
        encoding, char = self._at(batch_or_char_index, char_index)
        return encoding.char_to_token(char, sequence_index)

    def token_to_chars(self, batch_or_token_index: int, token_index: int | None = None) -> Span | None:
        """A token's characters, first and last + 1; None for a special token."""
        encoding, token = self._at(batch_or_token_index, token_index)
        return _span(encoding.token_to_chars(token))

    def token_to_word(self, batch_or_token_index: int, token_index: int | None = None) -> int | None:
        """A token's word, as ``word_ids`` counts; None for a special token."""
        encoding, token = self._at(batch_or_token_index, token_index)
        return encoding.token_to_word(token)

    def token_to_sequence(self, batch_or_token_index: int, token_index: int | None = None) -> int | None:
        """0 for a token of the first text, 1 for one of a pair's second; None for a special token."""
        encoding, token = self._at(batch_or_token_index, token_index)
        return encoding.token_to_sequence(token)

    def char_to_word(
        self, batch_or_char_index: int, char_index: int | None = None, sequence_index: int = 0
    ) -> int | None:
        """The word that holds a character; None between words."""
        encoding, char = self._at(batch_or_char_index, char_index)
        return encoding.char_to_word(char, sequence_index)

    def word_to_chars(
        self, batch_or_word_index: int, word_index: int | None = None, sequence_index: int = 0
    ) -> Span | None:
        """A word's characters, first and last + 1; None where it has none."""
        encoding, word = self._at(batch_or_word_index, word_index)
        return _span(encoding.word_to_chars(word, sequence_index))

    def word_to_tokens(
        self, batch_or_word_index: int, word_index: int | None = None, sequence_index: int = 0
    ) -> Span | None:
        """A word's tokens, first and last + 1; None where it has none."""
        encoding, word = self._at(batch_or_word_index, word_index)
        return _span(encoding.word_to_tokens(word, sequence_index))

    def to(self, device: str | torch.device, *, non_blocking: bool = False) -> Self:
        """Move the tensors to a device, in place; what is none stays as it is.

        Args:
            device: where to.
            non_blocking: do not wait for copies from pinned memory.
        """
        import torch

        self.data = {
            name: value.to(device, non_blocking=non_blocking) if isinstance(value, torch.Tensor) else value
            for name, value in self.data.items()
        }
        return self

    def _at(self, batch_or_index: int, index: int | None) -> tuple[Encoding, int]:
        return (self[0], batch_or_index) if index is None else (self[batch_or_index], index)


def _span(places: tuple[int, int] | None) -> Span | None:
    return None if places is None else Span(*places)


def as_tensors(data: dict[str, list[Any]], kind: str) -> dict[str, Any]:
    """Lists in, tensors (``pt``) or arrays (``np``) out: int64, or float32 where there are fractions.

    Raises:
        TokenizerError: rows of different lengths, what is no number, or another kind.
    """
    if kind not in ("pt", "np"):
        raise TokenizerError(f"return_tensors ({kind!r}) is unknown: choose 'pt' or 'np'")
    arrays = {name: _array(name, value) for name, value in data.items()}
    if kind == "np":
        return arrays
    import torch  # here: who tokenises for others needs none

    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def _array(name: str, value: list[Any]) -> NDArray[Any]:
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise TokenizerError(
            f"the rows of {name} have different lengths ({error}): pass padding=True, or truncation too"
        ) from error
    if array.size and array.dtype.kind not in "biuf":
        raise TokenizerError(f"{name} holds what is no number: leave it out, or ask for no tensors")
    return array.astype(np.float32 if array.size and array.dtype.kind == "f" else np.int64, copy=False)
