"""A call's texts in, the library's inputs and results out; its refusals name the text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tokenizers import Encoding

from convbert.errors import TokenizerError
from convbert.tokenization.backend import is_panic

EncodeBatch = Callable[[list[Any]], list[Encoding]]


def library_inputs(text: Any, pair: Any, *, words: bool) -> tuple[list[Any], bool, bool]:
    """A call's texts as the library takes them; whether they are a batch, and whether they are pairs."""
    check_texts(text if isinstance(text, (list, tuple)) else [text])
    is_batch = isinstance(text, (list, tuple)) and (not words or (bool(text) and isinstance(text[0], (list, tuple))))
    if not is_batch:
        return [text if pair is None else (text, pair)], False, pair is not None
    if pair is not None:
        if not isinstance(pair, (list, tuple)):
            raise TokenizerError(f"text_pair ({pair!r:.80}) must be a list, as text is")
        return paired(text, pair), True, True
    is_pair = not words and bool(text) and all(isinstance(item, tuple) for item in text)
    if not (words or is_pair) and any(isinstance(item, (list, tuple)) for item in text):
        raise TokenizerError("text holds lists: pass is_split_into_words=True for words, or tuples for pairs")
    return list(text), True, is_pair


def check_texts(texts: Sequence[Any]) -> None:
    """See that each is a text, or a pair or words: the library takes whatever has two items for a pair.

    Raises:
        TokenizerError: which is not.
    """
    for index, item in enumerate(texts):
        if not isinstance(item, (str, list, tuple)):
            raise TokenizerError(f"text {index} {_no_text(item)}")


def paired(texts: Sequence[Any], pairs: Sequence[Any]) -> list[Any]:
    """Each text with its pair.

    Raises:
        TokenizerError: not as many.
    """
    if len(texts) != len(pairs):
        raise TokenizerError(f"{len(texts)} texts cannot be paired with {len(pairs)}: give as many")
    return list(zip(texts, pairs, strict=True))


def encode(encode_batch: EncodeBatch, inputs: list[Any], numbers: Sequence[int] | None = None) -> list[Encoding]:
    """The library's result of each text.

    Args:
        encode_batch: the library's function.
        inputs: the texts.
        numbers: what errors call them; None counts from 0.

    Raises:
        TokenizerError: a text that the library refuses, and why.
    """
    encodings, refusal = _attempt(encode_batch, inputs)
    if refusal is None:
        return encodings
    for index, item in zip(numbers or range(len(inputs)), inputs, strict=True):
        _, cause = _attempt(encode_batch, [item])
        if cause is not None:
            raise TokenizerError(f"text {index} {_reason(item, cause)}") from cause
    raise TokenizerError(f"the texts cannot be tokenised: {refusal}") from refusal


def _attempt(encode_batch: EncodeBatch, inputs: list[Any]) -> tuple[list[Encoding], BaseException | None]:
    try:
        return encode_batch(inputs), None
    except Exception as error:
        return [], error
    except BaseException as error:  # the library panics where a stride leaves a pair no room, and that is no Exception
        if not is_panic(error):
            raise
        return [], error


def _reason(item: Any, error: BaseException) -> str:
    for part in _parts(item):
        if not isinstance(part, str):
            return _no_text(part)
        try:
            part.encode("utf-8")
        except UnicodeEncodeError as found:
            return (
                f"holds the lone surrogate U+{ord(part[found.start]):04X} at character {found.start}: it is no valid "
                "Unicode, decode its source with errors='replace'"
            )
    return f"cannot be tokenised: {error}"


def _no_text(item: Any) -> str:
    return f"holds {item!r:.80}, which is no text: give str"


def _parts(item: Any) -> Iterator[Any]:
    if isinstance(item, (list, tuple)):
        for part in item:
            yield from _parts(part)
    else:
        yield item
