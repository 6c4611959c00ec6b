"""A call's arguments in, the library's truncation and padding settings out, checked."""

from __future__ import annotations

from numbers import Integral
from typing import Any

from convbert.errors import TokenizerError

TRUNCATIONS = ("longest_first", "only_first", "only_second", "do_not_truncate")
PADDINGS = ("longest", "max_length", "do_not_pad")
SIDES = ("right", "left")


def truncation_settings(
    truncation: bool | str | None,
    *,
    padding: bool | str,
    max_length: int | None,
    model_max_length: int | None,
    n_special_tokens: int,
    stride: int,
    windows: bool,
    side: str,
) -> dict[str, Any] | None:
    """Settings of ``Tokenizer.enable_truncation``, or None not to truncate.

    Args:
        truncation: True for longest_first; None truncates where only ``max_length`` is given, as in Transformers.
        padding: of the same call.
        max_length: longest result in tokens, special tokens included; None for ``model_max_length``.
        model_max_length: the tokenizer's own; None for no limit.
        n_special_tokens: of one result.
        stride: tokens that a window shares with the one before.
        windows: whether the rest of a text is wanted too, in windows.
        side: the end that is cut.

    Raises:
        TokenizerError: an unknown strategy or side, or no room for text within the limit.
    """
    if truncation is None:
        truncation = max_length is not None and padding is False
    strategy = ("longest_first" if truncation else "do_not_truncate") if isinstance(truncation, bool) else truncation
    _check_choice("truncation", strategy, TRUNCATIONS)
    limit = model_max_length if max_length is None else max_length
    if strategy == "do_not_truncate" or limit is None:
        return None
    _check_choice("truncation_side", side, SIDES)
    _check_whole("max_length", limit, at_least=1)
    _check_whole("stride", stride, at_least=0)
    room = limit - n_special_tokens
    if room < 0:
        raise TokenizerError(f"max_length ({limit}) is below the {n_special_tokens} special tokens: raise it")
    if (windows or stride) and stride >= room:
        raise TokenizerError(
            f"stride ({stride}) must be below the {room} tokens that max_length ({limit}) leaves for text: "
            "lower it or raise max_length"
        )
    return {"max_length": limit, "stride": stride, "strategy": strategy, "direction": side}


def padding_settings(
    padding: bool | str,
    *,
    max_length: int | None,
    model_max_length: int | None,
    multiple_of: int | None,
    side: str,
    pad_token: str | None,
    pad_token_id: int | None,
) -> dict[str, Any] | None:
    """Settings of ``Tokenizer.enable_padding``, or None not to pad.

    Args:
        padding: True for longest, the longest result of the call.
        max_length: length of every result under max_length; None for ``model_max_length``.
        model_max_length: the tokenizer's own; None for no limit, and then max_length pads nothing.
        multiple_of: lengths are rounded up to a multiple of this.
        side: where the padding goes.
        pad_token: its text.
        pad_token_id: its id.

    Raises:
        TokenizerError: an unknown strategy or side, or a vocabulary without a padding token.
    """
    strategy = ("longest" if padding else "do_not_pad") if isinstance(padding, bool) else padding
    _check_choice("padding", strategy, PADDINGS)
    _check_choice("padding_side", side, SIDES)
    length = None
    if strategy == "max_length":
        length = model_max_length if max_length is None else max_length
    if strategy == "do_not_pad" or (strategy == "max_length" and length is None):
        return None
    if pad_token_id is None:
        raise TokenizerError("padding needs a pad_token: name one with add_special_tokens({'pad_token': …})")
    for name, value in (("max_length", length), ("pad_to_multiple_of", multiple_of)):
        if value is not None:
            _check_whole(name, value, at_least=1)
    return {
        "length": length,
        "pad_to_multiple_of": multiple_of,
        "direction": side,
        "pad_token": pad_token,
        "pad_id": pad_token_id,
        "pad_type_id": 0,
    }


def check_multiple(truncation: dict[str, Any] | None, padding: dict[str, Any] | None) -> None:
    """Refuse a truncation whose results padding would make longer than the limit again."""
    multiple = padding and padding["pad_to_multiple_of"]
    if truncation and multiple and truncation["max_length"] % multiple:
        raise TokenizerError(
            f"max_length ({truncation['max_length']}) is no multiple of pad_to_multiple_of ({multiple}): change one"
        )


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise TokenizerError(f"{name} ({value!r}) is unknown: choose one of {', '.join(choices)}")


def _check_whole(name: str, value: object, *, at_least: int) -> None:
    if not isinstance(value, Integral) or isinstance(value, bool) or int(value) < at_least:
        raise TokenizerError(f"{name} ({value!r}) must be a whole number of at least {at_least}")
