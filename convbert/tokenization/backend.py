"""A vocab.txt or tokenizer.json in, a ``tokenizers.Tokenizer`` with BERT's defaults out."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import WordPiece

from convbert.errors import TokenizerError

NORMALISATION = {
    "do_lower_case": "lowercase",
    "strip_accents": "strip_accents",
    "tokenize_chinese_chars": "handle_chinese_chars",
}
"""The library's name of each of BERT's settings."""
MOST_HOLES = 1_000_000  # ids that no token has
_PUNCTUATION = r"[!-/:-@\[-`{-~\p{P}]"  # BERT counts every ASCII symbol


def from_vocab(path: str | Path, *, unk_token: str) -> Tokenizer:
    """WordPiece over a vocab.txt: a token's id is the number of its last line.

    Raises:
        TokenizerError: no readable vocabulary, or one without ``unk_token``.
    """
    vocab = _read_vocab(Path(path))
    if unk_token not in vocab:
        raise TokenizerError(f"unk_token ({unk_token!r}) is not in {path}: name the right one with unk_token=…")
    backend = Tokenizer(WordPiece(vocab, unk_token=unk_token))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return backend


def from_json(path: str | Path) -> tuple[Tokenizer, dict[str, str]]:
    """Any algorithm that the library can read, without the truncation and padding that the file may ask for.

    Their sides come beside it: Transformers keeps a changed ``padding_side`` or ``truncation_side`` nowhere else.

    Raises:
        TokenizerError: it cannot be read.
    """
    try:
        backend = Tokenizer.from_str(Path(path).read_text(encoding="utf-8"))
    except BaseException as error:  # the library raises bare Exception for whatever it cannot parse, and panics
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        raise TokenizerError(f"{path} cannot be read as a tokenizer: {error}") from error
    limits = {"padding_side": backend.padding, "truncation_side": backend.truncation}
    sides = {name: limit["direction"] for name, limit in limits.items() if limit}
    backend.no_truncation()
    backend.no_padding()
    return backend, sides


def is_panic(error: BaseException) -> bool:
    """Whether the library has met what it thought impossible; that is no Exception."""
    return type(error).__name__ == "PanicException"


def check_ids(backend: Tokenizer) -> None:
    """See that the ids are about as many as the tokens, for much is made for every id.

    Raises:
        TokenizerError: no tokens, or ids far beyond their number.
    """
    ids = backend.get_vocab().values()
    if not ids:
        raise TokenizerError("the vocabulary is empty: it must have tokens")
    if max(ids) - len(ids) > MOST_HOLES:
        raise TokenizerError(f"the vocabulary has ids up to {max(ids)}, but only {len(ids)} tokens: it is damaged")


def cuts_at_spaces(backend: Tokenizer) -> bool:
    """Whether what stands before a space is tokenised alike whatever follows it, as with BERT's own steps."""
    normalizer = backend.normalizer
    return (
        isinstance(backend.pre_tokenizer, pre_tokenizers.BertPreTokenizer)
        and (normalizer is None or isinstance(normalizer, normalizers.BertNormalizer))
        and not any(re.search(r"\s", token.content) for token in backend.get_added_tokens_decoder().values())
    )


def has_berts_steps(backend: Tokenizer) -> bool:
    """Whether texts are normalised and split into words as BERT does, some of which may be kept whole."""
    splits = (pre_tokenizers.BertPreTokenizer, pre_tokenizers.Sequence)  # BERT's, and what set_never_split makes of it
    return isinstance(backend.normalizer, normalizers.BertNormalizer) and isinstance(backend.pre_tokenizer, splits)


def normalisation(backend: Tokenizer) -> dict[str, bool | None]:
    """BERT's settings by name; none where the text is normalised in another way."""
    normalizer = backend.normalizer
    if not isinstance(normalizer, normalizers.BertNormalizer):
        return {}
    return {name: getattr(normalizer, attribute) for name, attribute in NORMALISATION.items()}


def set_normalisation(backend: Tokenizer, settings: Mapping[str, bool | None]) -> None:
    """Change those of BERT's settings that are not None; another normaliser has none and stays as it is."""
    normalizer = backend.normalizer
    if isinstance(normalizer, normalizers.BertNormalizer):
        for name, value in settings.items():
            if value is not None:
                setattr(normalizer, NORMALISATION[name], value)
        backend.normalizer = normalizer


def set_never_split(backend: Tokenizer, words: Iterable[str]) -> None:
    """Keep these whole where white space surrounds them, as BERT's Python tokenizer in Transformers 4 does.

    They are looked for in the normalised text. BERT's own pre-tokeniser cannot spare a word, so its split
    at white space and punctuation is spelled out; it knows the punctuation of newer Unicode, too.

    Raises:
        TokenizerError: a word that could never be found whole, or another algorithm than BERT's.
    """
    words = sorted(words)
    if not has_berts_steps(backend):
        raise TokenizerError(f"never_split ({words}) needs BERT's pre-tokenisation: keep words whole with add_tokens")
    for word in words:
        normalised = backend.normalizer.normalize_str(word)
        if normalised != word or word.split() != [word]:
            raise TokenizerError(
                f"never_split ({word!r}) is no word of the normalised text, which reads {normalised!r}: "
                "give that, or change do_lower_case, strip_accents or tokenize_chinese_chars"
            )
        if backend.model.token_to_id(word) is None:
            raise TokenizerError(
                f"never_split ({word!r}) is not in the vocabulary: add it with add_tokens, or give another never_split"
            )
    whole = "|".join(map(re.escape, words))
    parts = pre_tokenizers.Split(Regex(rf"\A(?:{whole})\z|{_PUNCTUATION}"), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), parts])


def complete_wordpiece(backend: Tokenizer, *, cls_token: str | None, sep_token: str | None, frame: bool) -> None:
    """Give WordPiece BERT's frame, ``[CLS] A [SEP] B [SEP]``, and decoder where it has none."""
    if not isinstance(backend.model, WordPiece):
        return
    if backend.decoder is None:
        backend.decoder = decoders.WordPiece()
    if backend.post_processor is None and frame:
        if cls_token is None or sep_token is None:
            raise TokenizerError(
                f"cls_token ({cls_token!r}) and sep_token ({sep_token!r}) must be in the vocabulary: "
                "name the right ones with cls_token=… and sep_token=…"
            )
        backend.post_processor = processors.TemplateProcessing(
            single=[f"{cls_token}:0", "$A:0", f"{sep_token}:0"],
            pair=[f"{cls_token}:0", "$A:0", f"{sep_token}:0", "$B:1", f"{sep_token}:1"],
            special_tokens=[(token, backend.token_to_id(token)) for token in (cls_token, sep_token)],
        )


def without_holes(backend: Tokenizer) -> Tokenizer:
    """The same tokenizer, with an unreachable token for every id below the highest that has none.

    The library numbers new tokens from the count of the vocabulary, so that holes would let a new token
    take an old one's id. No text holds the placeholders: a piece of a text has no spaces.

    Raises:
        TokenizerError: a Unigram vocabulary, which has holes where a piece stands twice and none to be filled.
    """
    ids = set(backend.get_vocab().values())
    holes = set(range(max(ids))) - ids
    if not holes:
        return backend
    state: dict[str, Any] = json.loads(backend.to_str())
    if not isinstance(state["model"]["vocab"], dict):
        raise TokenizerError(
            f"the vocabulary holds pieces twice, and no token for the id {min(holes)}: no token can be added to it. "
            "Leave each piece once in tokenizer.json"
        )
    state["model"]["vocab"].update({f"[unused id {index}]": index for index in holes})
    return Tokenizer.from_str(json.dumps(state))


def vocab_lines(backend: Tokenizer) -> list[str]:
    """Lines of a vocab.txt in which every token's id is the number of its last line.

    A hole in the ids becomes a copy of the next token: its later line is the one that counts.
    """
    tokens = {index: token for token, index in backend.get_vocab(with_added_tokens=False).items()}
    lines: list[str] = []
    for index in range(max(tokens), -1, -1):
        lines.append(tokens.get(index, lines[-1] if lines else ""))
    return lines[::-1]


def _read_vocab(path: Path) -> dict[str, int]:
    try:
        lines = [line.rstrip() for line in path.read_bytes().decode("utf-8").split("\n")]  # as the library reads them
    except (OSError, UnicodeDecodeError) as error:
        raise TokenizerError(f"{path} cannot be read as a vocabulary: {error}") from error
    if lines[-1] == "":
        lines.pop()
    if not lines:
        raise TokenizerError(f"{path} is empty: it must hold one token a line")
    return {line: index for index, line in enumerate(lines)}
