"""Text in, token ids out: WordPiece on the tokenizers library, for any vocab.txt or tokenizer.json."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import WordPiece

from convbert.checkpoints.location import local_folder
from convbert.errors import TokenizerError

VOCAB_NAME = "vocab.txt"
TOKENIZER_NAME = "tokenizer.json"
CONFIG_NAME = "tokenizer_config.json"
DEFAULT_MAX_LENGTH = 512
_UNBOUNDED = 10**18  # Transformers writes 1e30 for "no limit"
SPECIAL_TOKENS = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}
_NORMALISATION = {
    "do_lower_case": "lowercase",
    "strip_accents": "strip_accents",
    "tokenize_chinese_chars": "handle_chinese_chars",
}


class Encoded(NamedTuple):
    """Ids of a batch of texts, unpadded, special tokens included.

    Attributes:
        input_ids: one list of ids a text.
        token_type_ids: as long as ``input_ids``; 1 for the tokens of a pair's second text.
    """

    input_ids: list[list[int]]
    token_type_ids: list[list[int]]


class ConvBertTokenizer:
    """BERT's tokenisation with ConvBERT's defaults: uncased WordPiece between [CLS] and [SEP].

    Ids are line numbers of vocab.txt. Where a line stands there twice the last one counts, so that ids
    can have holes; they survive saving and loading unchanged.

    Args:
        vocab_file: vocab.txt, one token a line. Needed unless ``tokenizer_file`` is given.
        tokenizer_file: tokenizer.json of the tokenizers library; decides the algorithm where both are given.
        do_lower_case: lower-case the text; None keeps what tokenizer.json says (True without one).
        strip_accents: remove accents; None follows ``do_lower_case``.
        tokenize_chinese_chars: a token for each CJK ideograph; None keeps what tokenizer.json says
            (True without one).
        model_max_length: longest sequence in tokens, special tokens included; None sets no limit.
        special_tokens: names in place of the defaults in SPECIAL_TOKENS.

    Raises:
        TokenizerError: no vocabulary, or a special token that is not in it.
    """

    def __init__(
        self,
        vocab_file: str | Path | None = None,
        tokenizer_file: str | Path | None = None,
        *,
        do_lower_case: bool | None = None,
        strip_accents: bool | None = None,
        tokenize_chinese_chars: bool | None = None,
        model_max_length: int | None = DEFAULT_MAX_LENGTH,
        special_tokens: dict[str, str] | None = None,
    ) -> None:
        self.special_tokens = {**SPECIAL_TOKENS, **(special_tokens or {})}
        self.model_max_length = model_max_length
        normalisation = {
            "do_lower_case": do_lower_case,
            "strip_accents": strip_accents,
            "tokenize_chinese_chars": tokenize_chinese_chars,
        }
        if tokenizer_file is not None:
            self.backend = _read_backend(Path(tokenizer_file))
            _override_normalizer(self.backend, normalisation)
        elif vocab_file is not None:
            self.backend = _wordpiece(_read_vocab(Path(vocab_file)), self.special_tokens, normalisation)
        else:
            raise TokenizerError(f"give vocab_file ({VOCAB_NAME}) or tokenizer_file ({TOKENIZER_NAME})")
        for role, token in self.special_tokens.items():
            if self.backend.token_to_id(token) is None:
                raise TokenizerError(
                    f"{role} ({token!r}) is not in the vocabulary: name the right one in special_tokens"
                )

    @property
    def vocab_size(self) -> int:
        """One more than the highest id, holes included: the rows that an embedding table needs."""
        return 1 + max(self.backend.get_vocab(with_added_tokens=True).values())

    def token_id(self, role: str) -> int:
        """Id of a special token by its role, such as ``pad_token``."""
        return int(self.backend.token_to_id(self.special_tokens[role]))

    def fingerprint(self) -> str:
        """SHA-256 over all that decides the ids of a text."""
        self.backend.no_truncation()
        return hashlib.sha256(self.backend.to_str().encode("utf-8")).hexdigest()

    def encode_batch(
        self, texts: Sequence[str], pairs: Sequence[str] | None = None, *, max_length: int | None = None
    ) -> Encoded:
        """Ids of many texts, or of text pairs, with special tokens and without padding.

        Args:
            texts: first (or only) texts.
            pairs: as many second texts.
            max_length: longest result in tokens, special tokens included; the longer text of a pair is
                cut first. None never cuts.
        """
        if max_length is None:
            self.backend.no_truncation()
        else:
            self.backend.enable_truncation(max_length)
        inputs = list(texts) if pairs is None else list(zip(texts, pairs, strict=True))
        encodings = self.backend.encode_batch_fast(inputs)
        return Encoded([e.ids for e in encodings], [e.type_ids for e in encodings])

    @classmethod
    def from_pretrained(cls, folder_or_url: str | Path) -> ConvBertTokenizer:
        """The tokenizer of a checkpoint folder, local or at any fsspec URL.

        tokenizer.json decides where there is one; tokenizer_config.json overrides its normalisation.

        Raises:
            TokenizerError: no vocabulary there, or one that cannot be read.
        """
        folder = local_folder(folder_or_url)
        config = _read_config(folder / CONFIG_NAME)
        files = {
            "vocab_file": folder / VOCAB_NAME if (folder / VOCAB_NAME).is_file() else None,
            "tokenizer_file": folder / TOKENIZER_NAME if (folder / TOKENIZER_NAME).is_file() else None,
        }
        if not any(files.values()):
            raise TokenizerError(
                f"{folder_or_url} has neither {TOKENIZER_NAME} nor {VOCAB_NAME}: add the tokenizer's files"
            )
        max_length = config.get("model_max_length", DEFAULT_MAX_LENGTH)
        return cls(
            **files,
            **{name: config[name] for name in _NORMALISATION if name in config},
            model_max_length=None if max_length is None or max_length > _UNBOUNDED else int(max_length),
            special_tokens={role: _token_text(config[role]) for role in SPECIAL_TOKENS if config.get(role)},
        )

    def save_pretrained(self, folder: str | Path) -> None:
        """Write tokenizer.json, vocab.txt (WordPiece only) and tokenizer_config.json into a local folder."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.backend.no_truncation()
        (folder / TOKENIZER_NAME).write_text(self.backend.to_str(pretty=True), encoding="utf-8")
        if isinstance(self.backend.model, WordPiece):
            self.save_vocabulary(folder)
        config: dict[str, Any] = {"tokenizer_class": "ConvBertTokenizer", **self.special_tokens}
        config["model_max_length"] = self.model_max_length
        normalizer = self.backend.normalizer
        if isinstance(normalizer, normalizers.BertNormalizer):
            config |= {name: getattr(normalizer, attribute) for name, attribute in _NORMALISATION.items()}
        (folder / CONFIG_NAME).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    def save_vocabulary(self, folder: str | Path) -> Path:
        """Write vocab.txt so that each token's id is the number of its last line, and return its path.

        A hole in the ids is filled with a copy of the next token: its later line is the one that counts.
        """
        tokens = {index: token for token, index in self.backend.get_vocab(with_added_tokens=False).items()}
        lines: list[str] = []
        for index in range(max(tokens), -1, -1):
            lines.append(tokens.get(index, lines[-1] if lines else ""))
        path = Path(folder) / VOCAB_NAME
        path.write_text("".join(line + "\n" for line in reversed(lines)), encoding="utf-8")
        return path


def _read_vocab(path: Path) -> dict[str, int]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise TokenizerError(f"{path} cannot be read as a vocabulary: {error}") from error
    if lines[-1] == "":
        lines.pop()
    if not lines:
        raise TokenizerError(f"{path} is empty: it must hold one token a line")
    return {line: index for index, line in enumerate(lines)}


def _wordpiece(
    vocab: dict[str, int], special_tokens: dict[str, str], normalisation: dict[str, bool | None]
) -> Tokenizer:
    for role, token in special_tokens.items():
        if token not in vocab:
            raise TokenizerError(f"{role} ({token!r}) is not in the vocabulary: name the right one in special_tokens")
    backend = Tokenizer(WordPiece(vocab, unk_token=special_tokens["unk_token"]))
    backend.normalizer = normalizers.BertNormalizer(
        lowercase=normalisation["do_lower_case"] is not False,
        strip_accents=normalisation["strip_accents"],
        handle_chinese_chars=normalisation["tokenize_chinese_chars"] is not False,
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.add_special_tokens([AddedToken(token, special=True) for token in special_tokens.values()])
    cls, sep = special_tokens["cls_token"], special_tokens["sep_token"]
    backend.post_processor = processors.TemplateProcessing(
        single=f"{cls}:0 $A:0 {sep}:0",
        pair=f"{cls}:0 $A:0 {sep}:0 $B:1 {sep}:1",
        special_tokens=[(cls, vocab[cls]), (sep, vocab[sep])],
    )
    return backend


def _read_backend(path: Path) -> Tokenizer:
    try:
        backend = Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # the library raises bare Exception for whatever it cannot parse
        raise TokenizerError(f"{path} cannot be read as a tokenizer: {error}") from error
    backend.no_padding()
    return backend


def _override_normalizer(backend: Tokenizer, normalisation: dict[str, bool | None]) -> None:
    normalizer = backend.normalizer
    if isinstance(normalizer, normalizers.BertNormalizer):
        for name, value in normalisation.items():
            if value is not None:
                setattr(normalizer, _NORMALISATION[name], value)
        backend.normalizer = normalizer


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TokenizerError(f"{path} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise TokenizerError(f"{path} must hold a JSON object")
    return config


def _token_text(token: str | dict[str, Any]) -> str:
    return str(token["content"]) if isinstance(token, dict) else token
