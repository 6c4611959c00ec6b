"""Tokens and their ids, both ways: the part of a tokenizer that outlives any one text."""

from __future__ import annotations

import copy
import operator
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordPiece
from typing_extensions import Self

from convbert.errors import TokenizerError
from convbert.tokenization.backend import check_ids, without_holes
from convbert.tokenization.files import ROLES

DEFAULT_TOKENS = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}
_FRAME_ROLES = ("unk_token", "cls_token", "sep_token")  # the library holds copies of these
_CLEANED = {
    " .": ".",
    " ?": "?",
    " !": "!",
    " ,": ",",
    " ' ": "'",
    " n't": "n't",
    " 'm": "'m",
    " 's": "'s",
    " 've": "'ve",
    " 're": "'re",
}
"""Spaces that ``clean_up_tokenization_spaces`` takes out of English, in Transformers' order."""


class _Role:
    """A special token by what it is for, None where there is none; one of the vocabulary, or None, can be assigned."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.role = name

    def __get__(self, tokenizer: Vocabulary, owner: type) -> str | None:
        return tokenizer._roles.get(self.role)

    def __set__(self, tokenizer: Vocabulary, token: str | AddedToken | None) -> None:
        tokenizer._set_role(self.role, token)


class _RoleId:
    """A special token's id, None where there is none; that of a token, or None, can be assigned."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.role = name.removesuffix("_id")

    def __get__(self, tokenizer: Vocabulary, owner: type) -> int | None:
        token = tokenizer._roles.get(self.role)
        return None if token is None else tokenizer._backend.token_to_id(token)

    def __set__(self, tokenizer: Vocabulary, token_id: int | None) -> None:
        tokenizer._set_role(self.role, None if token_id is None else tokenizer._token_of(self.role, token_id))


class Vocabulary:
    """Tokens, special tokens and ids of a backend, which is used by one thread at a time.

    Args:
        backend: the library's tokenizer.
        added_tokens: tokens beyond its vocabulary by id, as checkpoints record them.
        special_tokens: tokens by role; BERT's where the vocabulary has them. None for no such token.
        extra_special_tokens: special tokens without a role, added where the vocabulary lacks them.
        clean_up_tokenization_spaces: whether ``decode`` takes spaces before punctuation out.
        split_special_tokens: whether a special token's characters in a text are text.

    Raises:
        TokenizerError: a named token that is not in the vocabulary, or an added one at another id.
    """

    bos_token, bos_token_id = _Role(), _RoleId()
    eos_token, eos_token_id = _Role(), _RoleId()
    unk_token, unk_token_id = _Role(), _RoleId()
    sep_token, sep_token_id = _Role(), _RoleId()
    pad_token, pad_token_id = _Role(), _RoleId()
    cls_token, cls_token_id = _Role(), _RoleId()
    mask_token, mask_token_id = _Role(), _RoleId()

    def __init__(
        self,
        backend: Tokenizer,
        *,
        added_tokens: Mapping[int, AddedToken],
        special_tokens: Mapping[str, str | AddedToken | None],
        extra_special_tokens: Sequence[str | AddedToken],
        clean_up_tokenization_spaces: bool,
        split_special_tokens: bool,
    ) -> None:
        self.clean_up_tokenization_spaces = clean_up_tokenization_spaces
        self.split_special_tokens = split_special_tokens
        check_ids(backend)
        self._backend = backend
        self._lock = threading.Lock()
        self._restore_added(added_tokens)
        self._roles = self._named_roles(special_tokens)
        self._extra = list(dict.fromkeys(map(str, extra_special_tokens)))
        named = [token for token in special_tokens.values() if token is not None]
        self._register([*named, *self._roles.values(), *extra_special_tokens])

    @property
    def vocab_size(self) -> int:
        """One more than the highest id, holes and added tokens included: the rows that an embedding table needs."""
        return 1 + max(self.get_vocab().values())

    def __len__(self) -> int:
        """As ``vocab_size``."""
        return self.vocab_size

    def get_vocab(self) -> dict[str, int]:
        """Ids by token, added tokens included."""
        return self._backend.get_vocab(with_added_tokens=True)

    @property
    def vocab(self) -> dict[str, int]:
        """As ``get_vocab``."""
        return self.get_vocab()

    def get_added_vocab(self) -> dict[str, int]:
        """Ids by token of those that are found before the text is split: special tokens, and what was added."""
        return {token.content: index for index, token in self.added_tokens_decoder.items()}

    @property
    def added_tokens_decoder(self) -> dict[int, AddedToken]:
        """The tokens of ``get_added_vocab`` by id, with their properties."""
        return dict(sorted(self._backend.get_added_tokens_decoder().items()))

    def add_tokens(
        self, new_tokens: str | AddedToken | Sequence[str | AddedToken], special_tokens: bool = False
    ) -> int:
        """Add tokens that are found before the text is split; a model's embeddings must grow to ``vocab_size``.

        Args:
            new_tokens: one token or several; those of the vocabulary keep their ids.
            special_tokens: they are special: decoding can skip them, and they match the text as it stands
                before it is normalised.

        Returns:
            How many of them were not in the vocabulary.
        """
        tokens = [new_tokens] if isinstance(new_tokens, (str, AddedToken)) else list(new_tokens)
        with self._lock:
            if any(self._backend.token_to_id(str(token)) is None for token in tokens):
                self._backend = without_holes(self._backend)
            n_before = self._backend.get_vocab_size()
            (self._backend.add_special_tokens if special_tokens else self._backend.add_tokens)(tokens)
            return self._backend.get_vocab_size() - n_before

    def add_special_tokens(
        self,
        special_tokens_dict: Mapping[str, str | AddedToken | Sequence[str | AddedToken]],
        replace_extra_special_tokens: bool = True,
    ) -> int:
        """Add special tokens by role, and those without one as ``extra_special_tokens``.

        Args:
            special_tokens_dict: tokens by role.
            replace_extra_special_tokens: forget earlier extra ones; they stay in the vocabulary.

        Returns:
            How many of them were not in the vocabulary.

        Raises:
            TokenizerError: no such role, one that frames the texts already, or what is no token.
        """
        roles: dict[str, Any] = dict(special_tokens_dict)
        extra = extra_tokens(roles.pop("extra_special_tokens", None) or roles.pop("additional_special_tokens", None))
        for role, token in roles.items():
            self._check_role(role, str(token))
            _check_token(role, token)
        n_added = self.add_tokens([*roles.values(), *extra], special_tokens=True)
        for role, token in roles.items():
            self._set_role(role, str(token))
        kept = [] if extra and replace_extra_special_tokens else self._extra
        self._extra = list(dict.fromkeys([*kept, *map(str, extra)]))
        return n_added

    @property
    def special_tokens(self) -> dict[str, str]:
        """Special tokens by role."""
        return {role: self._roles[role] for role in ROLES if role in self._roles}

    @property
    def special_tokens_map(self) -> dict[str, str]:
        """Special tokens by role, under Transformers' name."""
        return self.special_tokens

    @property
    def extra_special_tokens(self) -> list[str]:
        """Special tokens without a role."""
        return list(self._extra)

    @property
    def all_special_tokens(self) -> list[str]:
        """Every special token once: those with a role, then the others."""
        return list(dict.fromkeys([*self.special_tokens.values(), *self._extra]))

    @property
    def all_special_ids(self) -> list[int]:
        """Ids of ``all_special_tokens``."""
        ids: list[int] = self.convert_tokens_to_ids(self.all_special_tokens)
        return ids

    def decode(
        self, token_ids: Any, skip_special_tokens: bool = False, clean_up_tokenization_spaces: bool | None = None
    ) -> str:
        """The text of an id or of a sequence, array or tensor (T,) of ids; ids that no token has are left out.

        Args:
            token_ids: the ids.
            skip_special_tokens: leave special tokens out.
            clean_up_tokenization_spaces: None for the tokenizer's own; WordPiece only.

        Raises:
            TokenizerError: what is no flat sequence of ids.
        """
        plain = token_ids.tolist() if hasattr(token_ids, "tolist") else token_ids
        try:
            ids = [plain] if isinstance(plain, int) else list(plain)
            with self._lock:
                text = self._backend.decode(ids, bool(skip_special_tokens))
        except (TypeError, OverflowError) as error:
            raise TokenizerError(
                f"token_ids ({plain!s:.80}) must be ids of at least 0 ({error}): use batch_decode for several texts"
            ) from error
        clean = clean_up_tokenization_spaces
        if (self.clean_up_tokenization_spaces if clean is None else clean) and isinstance(
            self._backend.model, WordPiece
        ):
            for spaced, closed in _CLEANED.items():
                text = text.replace(spaced, closed)
        return text

    def batch_decode(
        self, sequences: Any, skip_special_tokens: bool = False, clean_up_tokenization_spaces: bool | None = None
    ) -> list[str]:
        """The texts of several sequences of ids, or of a tensor or array (B, T); as ``decode``."""
        return [self.decode(ids, skip_special_tokens, clean_up_tokenization_spaces) for ids in sequences]

    def convert_tokens_to_ids(self, tokens: str | Sequence[str]) -> Any:
        """The id of a token, or the ids of several; that of ``unk_token`` where there is no such token."""
        if isinstance(tokens, str):
            index = self._backend.token_to_id(tokens)
            return self.unk_token_id if index is None else index
        return [self.convert_tokens_to_ids(token) for token in tokens]

    def convert_ids_to_tokens(self, ids: int | Sequence[int], skip_special_tokens: bool = False) -> Any:
        """The token of an id, or the tokens of several; None where no token has the id."""
        if isinstance(ids, int):
            return self._backend.id_to_token(ids)
        skipped = set(self.all_special_ids) if skip_special_tokens else ()
        return [self._backend.id_to_token(index) for index in map(int, ids) if index not in skipped]

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """The tokens joined to a text."""
        return self._backend.decoder.decode(tokens) if self._backend.decoder else " ".join(tokens)

    @contextmanager
    def _configured(
        self, truncation: dict[str, Any] | None = None, padding: dict[str, Any] | None = None
    ) -> Iterator[Tokenizer]:
        """The backend with these settings and no others, for one thread at a time: they are its state."""
        with self._lock:
            backend = self._backend
            backend.no_truncation() if truncation is None else backend.enable_truncation(**truncation)
            backend.no_padding() if padding is None else backend.enable_padding(**padding)
            backend.encode_special_tokens = self.split_special_tokens
            yield backend

    def __copy__(self) -> Self:
        return copy.deepcopy(self)  # or both would set one backend's limits, each under a lock of its own

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def _restore_added(self, added: Mapping[int, AddedToken]) -> None:
        """Add a checkpoint's added tokens, each at the id that it has there.

        Those of tokenizer.json stay as they are: added_tokens.json tells no more than their ids.
        """
        own = self.get_added_vocab()
        self.add_tokens([token for index, token in sorted(added.items()) if own.get(str(token)) != index])
        for index, token in added.items():
            now = self._backend.token_to_id(str(token))
            if now != index:
                raise TokenizerError(
                    f"the added token {str(token)!r} has the id {index} in the checkpoint and {now} in its vocabulary: "
                    "these files do not belong together"
                )

    def _named_roles(self, named: Mapping[str, str | AddedToken | None]) -> dict[str, str]:
        """Special tokens by role: those named, and BERT's own where the vocabulary has them."""
        defaults = {**DEFAULT_TOKENS, "unk_token": getattr(self._backend.model, "unk_token", None)}
        roles = {}
        for role in ROLES:
            token = named[role] if role in named else defaults.get(role)
            if token is None:
                continue
            if self._backend.token_to_id(str(token)) is not None:
                roles[role] = str(token)
            elif role in named:
                raise TokenizerError(
                    f"{role} ({str(token)!r}) is not in the vocabulary: name the right one, or add it with "
                    "add_special_tokens"
                )
        return roles

    def _register(self, tokens: Iterable[str | AddedToken]) -> None:
        """Make these special, unless they were added before with properties of their own."""
        added = self.get_added_vocab()
        new: dict[str, str | AddedToken] = {}
        for token in tokens:
            if str(token) not in added:
                new.setdefault(str(token), token)
        self.add_tokens(list(new.values()), special_tokens=True)

    def _check_role(self, role: str, token: str | None) -> None:
        if role not in ROLES:
            raise TokenizerError(f"{role!r} is no special token: choose one of {', '.join(ROLES)}")
        if role in _FRAME_ROLES and self._roles.get(role) not in (None, token):
            raise TokenizerError(
                f"{role} ({self._roles[role]!r}) is part of every text: name another when the tokenizer is made"
            )

    def _set_role(self, role: str, token: str | AddedToken | None) -> None:
        """Let a token of the vocabulary, or none, be what a role stands for."""
        if not isinstance(token, (str, AddedToken, type(None))):
            raise TokenizerError(f"{role} ({token!r:.80}) must be a token of the vocabulary, or None")
        content = None if token is None else str(token)
        self._check_role(role, content)
        if content is None:
            self._roles.pop(role, None)
        elif self._backend.token_to_id(content) is None:
            raise TokenizerError(f"{role} ({content!r}) is not in the vocabulary: add it with add_special_tokens")
        else:
            self._roles[role] = content

    def _token_of(self, role: str, token_id: int) -> str:
        """The token that a role is given by its id."""
        try:
            token = self._backend.id_to_token(operator.index(token_id))
        except (TypeError, OverflowError):
            token = None
        if token is None:
            raise TokenizerError(
                f"{role}_id ({token_id!r:.80}) is the id of no token: give one of the vocabulary's, below {len(self)}"
            )
        return token


def extra_tokens(given: Any) -> list[str | AddedToken]:
    """Special tokens without a role as a list, where one is given alone or each has a name, too.

    Raises:
        TokenizerError: what is no token.
    """
    if isinstance(given, (str, AddedToken)):
        return [given]
    tokens = list(given.values() if isinstance(given, Mapping) else given or ())
    for token in tokens:
        _check_token("extra_special_tokens", token)
    return tokens


def _check_token(name: str, token: object) -> None:
    if not isinstance(token, (str, AddedToken)):
        raise TokenizerError(f"{name} ({token!r:.80}) must be a token: tokenizer.pad_token = None leaves one out")
