"""A checkpoint folder in, the tokenizer's settings out: every file that Transformers 3, 4 and 5 write.

tokenizer.json and vocab.txt hold the vocabulary, tokenizer_config.json the settings. special_tokens_map.json
and added_tokens.json are read where tokenizer_config.json has no ``added_tokens_decoder``, as in old checkpoints.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from convbert.errors import TokenizerError

VOCAB_NAME = "vocab.txt"
TOKENIZER_NAME = "tokenizer.json"
CONFIG_NAME = "tokenizer_config.json"
SPECIAL_NAME = "special_tokens_map.json"
ADDED_NAME = "added_tokens.json"
ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""What a special token can be for, in Transformers' order."""
_PLAIN = (
    "do_lower_case",
    "strip_accents",
    "tokenize_chinese_chars",
    "never_split",
    "padding_side",
    "truncation_side",
    "clean_up_tokenization_spaces",
)
_ADDED_FIELDS = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")
_UNBOUNDED = 10**18  # Transformers writes 1e30 for "no limit"


def read_settings(folder: Path, *, source: str | Path) -> dict[str, Any]:
    """Keyword arguments of ConvBertTokenizer that make the folder's tokenizer.

    Args:
        folder: a local folder.
        source: where it was taken from, for errors.

    Raises:
        TokenizerError: no vocabulary there, or a file that cannot be read.
    """
    files = {"tokenizer_file": folder / TOKENIZER_NAME, "vocab_file": folder / VOCAB_NAME}
    settings: dict[str, Any] = {name: path for name, path in files.items() if path.is_file()}
    if not settings:
        raise TokenizerError(f"{source} has neither {TOKENIZER_NAME} nor {VOCAB_NAME}: add the tokenizer's files")
    config = _read_object(folder / CONFIG_NAME)
    if "added_tokens_decoder" not in config:
        config |= _read_object(folder / SPECIAL_NAME)
    extra = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    extra = [_token(token) for token in (extra.values() if isinstance(extra, dict) else extra)]
    special = {role: _token(config[role]) for role in ROLES if config.get(role)}
    settings |= {name: config[name] for name in _PLAIN if config.get(name) is not None}
    settings |= special
    if "model_max_length" in config:
        settings["model_max_length"] = _limit(config["model_max_length"])
    if "added_tokens_decoder" in config:
        added = {int(index): _token(token) for index, token in config["added_tokens_decoder"].items()}
    else:
        names = {str(token) for token in (*special.values(), *extra)}
        added = {index: _legacy_token(name, names) for name, index in _read_object(folder / ADDED_NAME).items()}
    return {**settings, "added_tokens": added, "extra_special_tokens": extra}


def added_token_fields(token: AddedToken) -> dict[str, Any]:
    """A token as ``added_tokens_decoder`` records it."""
    return {name: getattr(token, name) for name in _ADDED_FIELDS}


def _token(token: str | dict[str, Any]) -> str | AddedToken:
    """A token of a JSON file, with the properties that an object states."""
    if isinstance(token, str):
        return token
    return AddedToken(**{name: token[name] for name in _ADDED_FIELDS if name in token})


def _legacy_token(name: str, special: set[str]) -> AddedToken:
    return AddedToken(name, special=name in special, normalized=name not in special)


def _limit(length: Any) -> int | None:
    if length is not None and not isinstance(length, (int, float)):
        raise TokenizerError(f"model_max_length ({length!r}) in {CONFIG_NAME} must be a number of tokens, or null")
    return None if length is None or length > _UNBOUNDED else int(length)


def _read_object(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is no such file."""
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TokenizerError(f"{path} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise TokenizerError(f"{path} must hold a JSON object")
    return values
