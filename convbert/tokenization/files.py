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
from convbert.tokenization.backend import NORMALISATION

VOCAB_NAME = "vocab.txt"
TOKENIZER_NAME = "tokenizer.json"
CONFIG_NAME = "tokenizer_config.json"
SPECIAL_NAME = "special_tokens_map.json"
ADDED_NAME = "added_tokens.json"
ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""What a special token can be for, in Transformers' order."""
_FRAME = ("cls_token", "sep_token")  # which frame every text, whatever the config says of them
_PLAIN: dict[str, type] = {
    "do_lower_case": bool,
    "strip_accents": bool,
    "tokenize_chinese_chars": bool,
    "never_split": list,
    "model_input_names": list,
    "padding_side": str,
    "truncation_side": str,
    "clean_up_tokenization_spaces": bool,
    "split_special_tokens": bool,
}
"""Settings that are taken as they stand, and what each must be."""
_ADDED_FIELDS = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")
_KINDS = {bool: "true or false", list: "a list", str: "a string", dict: "an object"}
_BERTS = ("Bert", "ConvBert", "DistilBert", "DPRReader", "Electra", "LayoutLM", "Lxmert", "MobileBert", "RetriBert")
_BERT_CLASSES = {f"{name}Tokenizer" for name in (*_BERTS, "DPRContextEncoder", "DPRQuestionEncoder", "SqueezeBert")}
"""Classes of Transformers that split texts as BERT does: vocab.txt is all that they need."""
_BARE_CLASSES = ("PreTrainedTokenizerFast", "TokenizersBackend")
"""Those that add nothing to what tokenizer.json says."""
_INPUTS_WITHOUT_TYPES = ("input_ids", "attention_mask")
_WITHOUT_TYPES = ("DistilBertTokenizer", "DPRReaderTokenizer", "RetriBertTokenizer", "TokenizersBackend")
"""Those whose calls give no token types unless ``model_input_names`` says so, though their frames have some."""
_UNBOUNDED = 10**18  # Transformers writes 1e30 for "no limit"


def read_settings(folder: Path, *, source: str) -> dict[str, Any]:
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
    written_by = str(config.get("tokenizer_class") or "BertTokenizer")
    if "tokenizer_file" not in settings:
        if written_by.removesuffix("Fast") not in _BERT_CLASSES:
            raise TokenizerError(
                f"tokenizer_class ({written_by!r:.80}) splits texts by rules of its own: save its {TOKENIZER_NAME}"
            )
    elif written_by in _BARE_CLASSES:
        settings["frame"] = False
    elif written_by == "ConvBertTokenizer" and "backend" in config:
        # "backend" is a key of Transformers 5, whose class reads the normalisation from tokenizer.json alone
        config = {name: value for name, value in config.items() if name not in NORMALISATION}
    if written_by.removesuffix("Fast") in _WITHOUT_TYPES:
        settings["model_input_names"] = _INPUTS_WITHOUT_TYPES
    extra = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    extra = list(extra.values()) if isinstance(extra, dict) else _checked("extra_special_tokens", extra, list)
    extra = [_token("extra_special_tokens", token) for token in extra]
    special = {role: _token(role, config[role]) for role in ROLES if config.get(role)}
    none = {role: None for role in ROLES if config.get(role, "") is None and role not in _FRAME}
    settings |= {
        name: _checked(name, config[name], kind) for name, kind in _PLAIN.items() if config.get(name) is not None
    }
    settings["never_split"] = [_text("never_split", word) for word in settings.get("never_split", ())]
    settings |= {**special, **none}
    if limits := [config[name] for name in ("model_max_length", "max_len") if name in config]:  # the latter is older
        settings["model_max_length"] = _limit(limits[0])
    if "added_tokens_decoder" in config:
        decoder = _checked("added_tokens_decoder", config["added_tokens_decoder"], dict)
        added = {_index(index): _token("added_tokens_decoder", token) for index, token in decoder.items()}
    else:
        names = {str(token) for token in (*special.values(), *extra)}
        tokens = _read_object(folder / ADDED_NAME)
        added = {_index(index): _legacy_token(_text(ADDED_NAME, name), names) for name, index in tokens.items()}
    return {**settings, "added_tokens": added, "extra_special_tokens": extra}


def added_token_fields(token: AddedToken) -> dict[str, Any]:
    """A token as ``added_tokens_decoder`` records it."""
    return {name: getattr(token, name) for name in _ADDED_FIELDS}


def _checked(name: str, value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise TokenizerError(f"{name} ({value!r:.80}) must be {_KINDS[kind]}")
    return value


def _text(name: str, value: Any) -> str:
    try:
        str(_checked(name, value, str)).encode("utf-8")
    except UnicodeEncodeError as error:  # JSON can escape half of a surrogate pair
        raise TokenizerError(
            f"{name} ({value!a:.80}) holds half of a surrogate pair: write whole characters"
        ) from error
    return str(value)


def _token(name: str, token: Any) -> str | AddedToken:
    """A token of a JSON file, with the properties that an object states."""
    if not isinstance(token, dict):
        return _text(name, token)
    content, *properties = _ADDED_FIELDS
    flags = {key: _checked(f"{key} of {name}", token[key], bool) for key in properties if key in token}
    return AddedToken(_text(name, token.get(content)), **flags)


def _index(value: Any) -> int:
    """A token's id, which is a key of one file and a value of another."""
    if isinstance(value, str) and value.isdecimal() and len(value) < 20:
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise TokenizerError(f"an added token has the id {value!r:.80}: it must be 0, 1, 2, …")
    return value


def _legacy_token(name: str, special: set[str]) -> AddedToken:
    return AddedToken(name, special=name in special, normalized=name not in special)


def _limit(length: Any) -> int | None:
    if length is None:
        return None
    if not isinstance(length, (int, float)) or isinstance(length, bool) or not length >= 1:
        raise TokenizerError(f"model_max_length ({length!r:.80}) must be a number of tokens, at least 1, or null")
    return None if length > _UNBOUNDED else int(length)


def _read_object(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is no such file."""
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise TokenizerError(f"{path} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise TokenizerError(f"{path} must hold a JSON object")
    return values
