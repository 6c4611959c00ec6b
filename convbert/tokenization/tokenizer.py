"""Texts in, token ids out, and back: ConvBERT's tokenizer with the interface of Transformers' tokenizers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Encoding
from tokenizers.models import WordPiece

from convbert.checkpoints.arguments import check_saving, own_settings
from convbert.checkpoints.location import Checkpoint, folder_to_write, located, swapped_in
from convbert.errors import TokenizerError
from convbert.tokenization import backend as library
from convbert.tokenization.batch_encoding import BatchEncoding, as_tensors
from convbert.tokenization.files import (
    CONFIG_NAME,
    ROLES,
    TOKENIZER_NAME,
    VOCAB_NAME,
    added_token_fields,
    read_settings,
)
from convbert.tokenization.inputs import check_texts, encode, library_inputs, paired
from convbert.tokenization.limits import check_multiple, padding_settings, truncation_settings
from convbert.tokenization.padding import columns_of, padded
from convbert.tokenization.vocabulary import DEFAULT_TOKENS, Vocabulary, extra_tokens

DEFAULT_MAX_LENGTH = 512
DEFAULT_INPUTS = ("input_ids", "token_type_ids", "attention_mask")
_BEGINNING_CHARACTERS = 16  # of a text for each token that is wanted of it: most texts need no more
_FIELDS: dict[str, Callable[[Encoding], Any]] = {
    "input_ids": attrgetter("ids"),
    "token_type_ids": attrgetter("type_ids"),
    "attention_mask": attrgetter("attention_mask"),
    "special_tokens_mask": attrgetter("special_tokens_mask"),
    "offset_mapping": attrgetter("offsets"),
    "length": len,
}
"""Transformers' names of what the library's result of a text holds."""


class Encoded(NamedTuple):
    """Ids of a batch of texts, unpadded, special tokens included: a sequence a text, or several windows.

    Attributes:
        input_ids: one list of ids a sequence.
        token_type_ids: as long as ``input_ids``; 1 for the tokens of a pair's second text.
        n_windows: how many sequences each text became.
        spans: (T, 3) for each sequence, where they were asked for: each token's first and last + 1 character
            in its text, and the number of its word in the last text of a pair; -1 for special tokens and
            for tokens of the first text.
    """

    input_ids: list[list[int]]
    token_type_ids: list[list[int]]
    n_windows: list[int]
    spans: list[NDArray[np.int32]] | None = None


class ConvBertTokenizer(Vocabulary):
    """BERT's tokenisation with ConvBERT's defaults: uncased WordPiece between [CLS] and [SEP].

    Ids are line numbers of vocab.txt. Where a line stands there twice the last one counts, so that ids
    can have holes; they survive saving and loading unchanged. A tokenizer.json may hold another algorithm.

    Calls leave no trace: one tokenizer can be used by many threads, with different limits.

    Args:
        vocab_file: vocab.txt, one token a line. Needed unless ``tokenizer_file`` is given.
        tokenizer_file: tokenizer.json of the tokenizers library; decides the algorithm where both are given.
        do_lower_case: lower-case the text; None keeps what tokenizer.json says (True without one).
        strip_accents: remove accents; None keeps what tokenizer.json says, and follows ``do_lower_case``
            without one.
        tokenize_chinese_chars: a token for each CJK ideograph; None keeps what tokenizer.json says
            (True without one).
        never_split: words of the vocabulary that stay whole between white space, normalised as the text is.
        model_max_length: longest sequence in tokens, special tokens included; None sets no limit.
        padding_side: "right" or "left"; None keeps what tokenizer.json says ("right" where it says nothing).
        truncation_side: the end that is cut, the same way.
        model_input_names: what a call returns unless it is asked otherwise, and whether a pair's second text has a
            token type of its own.
        frame: give WordPiece without a post-processor BERT's frame.
        clean_up_tokenization_spaces: whether ``decode`` removes the spaces before punctuation and English
            contractions that the text had none of.
        split_special_tokens: take a special token's characters in a text for text, such as those of [MASK].
        extra_special_tokens: special tokens without a role, added where the vocabulary lacks them; also called
            ``additional_special_tokens``.
        added_tokens: tokens beyond the vocabulary by id, as checkpoints record them.
        special_tokens: ``unk_token``, ``sep_token``, ``pad_token``, ``cls_token``, ``mask_token``,
            ``bos_token`` and ``eos_token``; [UNK], [SEP], [PAD], [CLS] and [MASK] where the vocabulary has them.

    Raises:
        TokenizerError: no readable vocabulary, or a named token that is not in it.
    """

    def __init__(
        self,
        vocab_file: str | Path | None = None,
        tokenizer_file: str | Path | None = None,
        *,
        do_lower_case: bool | None = None,
        strip_accents: bool | None = None,
        tokenize_chinese_chars: bool | None = None,
        never_split: Iterable[str] = (),
        model_max_length: int | None = DEFAULT_MAX_LENGTH,
        padding_side: str | None = None,
        truncation_side: str | None = None,
        model_input_names: Sequence[str] = DEFAULT_INPUTS,
        frame: bool = True,
        clean_up_tokenization_spaces: bool = False,
        split_special_tokens: bool = False,
        extra_special_tokens: Sequence[str | AddedToken] | Mapping[str, str | AddedToken] | None = (),
        added_tokens: Mapping[int, AddedToken] | None = None,
        **special_tokens: Any,
    ) -> None:
        if "additional_special_tokens" in special_tokens:  # as Transformers 4 called them
            extra_special_tokens = special_tokens.pop("additional_special_tokens")
        special_tokens.pop("do_basic_tokenize", None)  # no tokenizer of the library looks at it
        unknown = sorted(special_tokens.keys() - set(ROLES))
        if unknown:
            raise TypeError(f"ConvBertTokenizer has no setting {unknown[0]!r}: check its name")
        extra = extra_tokens(extra_special_tokens)
        self.model_max_length = model_max_length
        self.model_input_names = list(model_input_names)
        self.never_split = sorted(never_split)
        sides: dict[str, str] = {}
        if tokenizer_file is not None:
            backend, sides = library.from_json(tokenizer_file)
        elif vocab_file is not None:
            unk_token = str(special_tokens.get("unk_token") or DEFAULT_TOKENS["unk_token"])
            backend = library.from_vocab(vocab_file, unk_token=unk_token)
        else:
            raise TokenizerError(f"give vocab_file ({VOCAB_NAME}) or tokenizer_file ({TOKENIZER_NAME})")
        self.padding_side = padding_side or sides.get("padding_side", "right")
        self.truncation_side = truncation_side or sides.get("truncation_side", "right")
        library.set_normalisation(
            backend,
            {
                "do_lower_case": do_lower_case,
                "strip_accents": strip_accents,
                "tokenize_chinese_chars": tokenize_chinese_chars,
            },
        )
        whole = {str(token) for token in (*DEFAULT_TOKENS.values(), *special_tokens.values(), *extra)}
        if words := set(self.never_split) - whole:  # special tokens are never split
            library.set_never_split(backend, words)
        super().__init__(
            backend,
            added_tokens=added_tokens or {},
            special_tokens=special_tokens,
            extra_special_tokens=extra,
            clean_up_tokenization_spaces=clean_up_tokenization_spaces,
            split_special_tokens=split_special_tokens,
        )
        library.complete_wordpiece(self._backend, cls_token=self.cls_token, sep_token=self.sep_token, frame=frame)

    @classmethod
    def from_pretrained(cls, folder_or_url: str | Path | Checkpoint, **changes: Any) -> ConvBertTokenizer:
        """The tokenizer of a checkpoint folder, local or at any fsspec URL.

        tokenizer.json decides where there is one; tokenizer_config.json overrides its normalisation.

        Args:
            changes: settings in place of the checkpoint's, such as ``model_max_length``. Arguments of Transformers that
                change nothing here, such as ``use_fast``, are taken too.

        Raises:
            CheckpointError: no such folder.
            TokenizerError: no vocabulary there, or one that cannot be read.
            InputError: an argument of Transformers asks for what is done in another way here.
        """
        changes = own_settings(changes, folder_or_url)
        checkpoint = located(folder_or_url)
        try:
            return cls(**{**read_settings(checkpoint.folder, source=checkpoint.source), **changes})
        except (TokenizerError, RecursionError) as error:  # the latter from quoting a value nested nearly too deep
            raise TokenizerError(f"the tokenizer of {checkpoint.source}: {error}") from error

    def save_pretrained(self, folder: str | Path, **others: Any) -> tuple[str, ...]:
        """Write tokenizer.json, tokenizer_config.json and for WordPiece vocab.txt into a local folder.

        Old files of these names are replaced when all new ones are written.

        Args:
            folder: made where it is missing.
            others: arguments of Transformers that change nothing here: ``legacy_format=False``.

        Returns:
            Paths of the files.

        Raises:
            CheckpointError: a URL in place of a folder.
            InputError: an argument of Transformers asks for what is done in another way here.
        """
        check_saving(others)
        folder = folder_to_write(folder)
        with self._configured() as backend:
            algorithm = backend.to_str(pretty=True)
            added = {index: added_token_fields(token) for index, token in backend.get_added_tokens_decoder().items()}
        is_wordpiece = isinstance(self._backend.model, WordPiece)
        config = {
            "tokenizer_class": "ConvBertTokenizer" if self._is_berts() else "PreTrainedTokenizerFast",
            **dict.fromkeys(DEFAULT_TOKENS),  # null is none, where a reader would look for BERT's
            **self.special_tokens,
            **library.normalisation(self._backend),
            "never_split": self.never_split or None,
            "model_max_length": self.model_max_length,
            "padding_side": self.padding_side,
            "truncation_side": self.truncation_side,
            "model_input_names": self.model_input_names,
            "clean_up_tokenization_spaces": self.clean_up_tokenization_spaces,
            "split_special_tokens": self.split_special_tokens,
            "additional_special_tokens": self.extra_special_tokens,
            "added_tokens_decoder": added,
        }
        with swapped_in(folder) as new:
            (new / TOKENIZER_NAME).write_text(algorithm, encoding="utf-8")
            if is_wordpiece:
                self.save_vocabulary(new)
            (new / CONFIG_NAME).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        names = [CONFIG_NAME, TOKENIZER_NAME, *([VOCAB_NAME] if is_wordpiece else [])]
        return tuple(str(folder / name) for name in names)

    def save_vocabulary(self, save_directory: str | Path, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Write the vocabulary without added tokens: vocab.txt, or the files of another algorithm.

        A hole in the ids is filled with a copy of the next token, whose later line counts.

        Args:
            save_directory: a local folder, made where it is missing.
            filename_prefix: goes before each name, with a hyphen.

        Returns:
            Paths of the files.

        Raises:
            CheckpointError: a URL in place of a folder.
        """
        folder = folder_to_write(save_directory)
        with swapped_in(folder) as new:
            if isinstance(self._backend.model, WordPiece):
                written = [str(new / (f"{filename_prefix}-{VOCAB_NAME}" if filename_prefix else VOCAB_NAME))]
                lines = "".join(f"{line}\n" for line in library.vocab_lines(self._backend))
                Path(written[0]).write_text(lines, encoding="utf-8")
            else:
                written = self._backend.model.save(str(new), filename_prefix)
        return tuple(str(folder / Path(path).name) for path in written)

    def fingerprint(self) -> str:
        """SHA-256 over all that decides the ids of a text."""
        with self._configured() as backend:
            state = backend.to_str() + self.truncation_side
        if "token_type_ids" not in self.model_input_names:
            state += "without token_type_ids"
        if self.split_special_tokens:
            state += "special tokens split"
        return hashlib.sha256(state.encode("utf-8")).hexdigest()

    def encode_batch(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None = None,
        *,
        max_length: int | None = None,
        truncation: str = "longest_first",
        stride: int | None = None,
        spans: bool = False,
    ) -> Encoded:
        """Ids of many texts, or of text pairs, with special tokens and without padding: the fast way.

        What ``max_length`` cuts off may not be looked at, and then may be no valid Unicode.

        Args:
            texts: first (or only) texts.
            pairs: as many second texts.
            max_length: longest sequence in tokens, special tokens included; None never cuts.
            truncation: "longest_first" cuts the longer text of a pair, "only_first" and "only_second" one of them.
            stride: continue what is cut off in further windows, each sharing this many tokens with the one
                before; None drops it.
            spans: tell each token's place in its text.

        Raises:
            TokenizerError: a text that is no valid Unicode, or a limit without room for text.
        """
        inputs = list(texts) if pairs is None else paired(texts, pairs)
        check_texts(inputs)
        cut = truncation_settings(
            False if max_length is None else truncation,
            padding=False,
            max_length=max_length,
            model_max_length=None,
            n_special_tokens=self.num_special_tokens_to_add(pair=pairs is not None),
            stride=stride or 0,
            windows=stride is not None,
            side=self.truncation_side if stride is None else "right",
        )
        with self._configured(cut) as backend:
            run = partial(encode, backend.encode_batch if spans else backend.encode_batch_fast)
            is_cut = cut is not None and cut["direction"] == "right" and stride is None and pairs is None
            if is_cut and _has_rest(texts, max_length or 0) and library.cuts_at_spaces(backend):
                encodings = _beginnings(run, list(texts), max_length or 0)
            else:
                encodings = run(inputs)
        windows = [[e] if stride is None else [e, *e.overflowing] for e in encodings]
        sequences = [sequence for group in windows for sequence in group]
        has_types = "token_type_ids" in self.model_input_names
        return Encoded(
            [e.ids for e in sequences],
            [e.type_ids if has_types else [0] * len(e.ids) for e in sequences],
            [len(group) for group in windows],
            [_spans(e, last=int(pairs is not None)) for e in sequences] if spans else None,
        )

    def __call__(
        self,
        text: Any,
        text_pair: Any = None,
        *,
        add_special_tokens: bool = True,
        padding: bool | str = False,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        stride: int = 0,
        is_split_into_words: bool = False,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_tensors: str | None = None,
        return_token_type_ids: bool | None = None,
        return_attention_mask: bool | None = None,
        return_overflowing_tokens: bool = False,
        return_special_tokens_mask: bool = False,
        return_offsets_mapping: bool = False,
        return_length: bool = False,
    ) -> BatchEncoding:
        """Model inputs of a text or of a list of texts; B texts or windows, T tokens.

        Args:
            text: a text, a list of texts, or a list of pairs as tuples. Where ``is_split_into_words``:
                a list of words, or a list of such lists.
            text_pair: second text or texts, of the same form and number.
            add_special_tokens: frame the texts with [CLS] and [SEP].
            padding: True or "longest" to the longest of the call, "max_length" to ``max_length``, or not at all.
            truncation: True or "longest_first" cuts the longer text of a pair, "only_first" and "only_second"
                one of them; False or "do_not_truncate". None truncates where ``max_length`` alone is given.
            max_length: longest result in tokens, special tokens included; None for ``model_max_length``.
            stride: tokens that each further window shares with the one before it.
            is_split_into_words: the texts are lists of words.
            pad_to_multiple_of: padded lengths are rounded up to a multiple of this.
            padding_side: "right" or "left"; None for the tokenizer's own.
            return_tensors: "pt" or "np" for int64 tensors or arrays (B, T), also of one text; None for lists.
            return_token_type_ids: give token_type_ids, 1 in a second text; None where ``model_input_names`` has it.
            return_attention_mask: give attention_mask, 0 in the padding; None where ``model_input_names`` has it.
            return_overflowing_tokens: continue what truncation cuts off in further windows;
                ``overflow_to_sample_mapping`` (B,) then tells each one's text.
            return_special_tokens_mask: give special_tokens_mask, 1 in special tokens and padding.
            return_offsets_mapping: give offset_mapping, each token's characters as (first, last + 1), in
                its word where the words are given; (0, 0) for special tokens.
            return_length: give length, tokens of each result with its padding.

        Raises:
            TokenizerError: a text that is no valid Unicode, a limit without room for text, or arguments that
                contradict each other.
        """
        inputs, is_batch, is_pair = library_inputs(text, text_pair, words=is_split_into_words)
        cut = truncation_settings(
            truncation,
            padding=padding,
            max_length=max_length,
            model_max_length=self.model_max_length,
            n_special_tokens=self.num_special_tokens_to_add(is_pair) if add_special_tokens else 0,
            stride=stride,
            windows=return_overflowing_tokens,
            side=self.truncation_side,
        )
        pad = self._padding(padding, max_length, pad_to_multiple_of, padding_side)
        check_multiple(cut, pad)

        with self._configured(cut, pad) as backend:
            encode_batch = partial(
                backend.encode_batch, is_pretokenized=is_split_into_words, add_special_tokens=add_special_tokens
            )
            encodings = encode(encode_batch, inputs)
        windows = [[e, *e.overflowing] if return_overflowing_tokens else [e] for e in encodings]
        encodings = [encoding for group in windows for encoding in group]
        wanted = {
            "input_ids": True,
            "token_type_ids": self._is_wanted("token_type_ids", return_token_type_ids),
            "attention_mask": self._is_wanted("attention_mask", return_attention_mask),
            "special_tokens_mask": return_special_tokens_mask,
            "offset_mapping": return_offsets_mapping,
            "length": return_length,
        }
        data: dict[str, list[Any]] = {
            name: list(map(_FIELDS[name], encodings)) for name, is_wanted in wanted.items() if is_wanted
        }
        if return_overflowing_tokens:
            data["overflow_to_sample_mapping"] = [index for index, group in enumerate(windows) for _ in group]
        if return_tensors is not None:
            return BatchEncoding(as_tensors(data, return_tensors), encodings)
        if not is_batch and not return_overflowing_tokens:  # one text: no batch axis, as in Transformers
            data = {name: value if name == "length" else value[0] for name, value in data.items()}
        return BatchEncoding(data, encodings)

    def encode(self, text: Any, text_pair: Any = None, **options: Any) -> Any:
        """The ids of a call, with special tokens; options as for a call."""
        return self(text, text_pair, **options)["input_ids"]

    def tokenize(self, text: Any, pair: Any = None, *, add_special_tokens: bool = False, **options: Any) -> list[str]:
        """The tokens of one text, or of a pair one after the other; options as for a call."""
        return self(text, pair, add_special_tokens=add_special_tokens, **options).tokens()

    def pad(
        self,
        encoded_inputs: Any,
        padding: bool | str = True,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: str | None = None,
        verbose: bool = True,
    ) -> BatchEncoding:
        """What is encoded already as one batch, as data collators want it; B encodings, T tokens.

        Args:
            encoded_inputs: a list of encodings of one text each, with any further values such as labels, an encoding
                of a batch, or of one text. Only what has a value a token is padded.
            padding, max_length, pad_to_multiple_of, padding_side: as for a call; nothing is cut.
            return_attention_mask: give attention_mask, 0 in the padding; None where ``model_input_names`` has it.
            return_tensors: "pt" or "np", (B, T) int64, or float32 where there are fractions; None for what came in.
            verbose: ignored, since there is nothing to say.

        Raises:
            TokenizerError: there are no input_ids, or rows that make no tensor.
        """
        columns, kind = columns_of(encoded_inputs)
        settings = self._padding(padding, max_length, pad_to_multiple_of, padding_side)
        mask = self._is_wanted("attention_mask", return_attention_mask)
        return padded(columns, settings, mask=mask, return_tensors=return_tensors or kind)

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """How many special tokens frame a text, or a pair."""
        return self._backend.num_special_tokens_to_add(pair)

    def build_inputs_with_special_tokens(
        self, token_ids_0: Sequence[int], token_ids_1: Sequence[int] | None = None
    ) -> list[int]:
        """Ids of a text, or of a pair, with their special tokens: [CLS] A [SEP], or [CLS] A [SEP] B [SEP]."""
        frame = self._frame(token_ids_0, token_ids_1)
        texts = (iter(token_ids_0), iter(token_ids_1 or ()))
        return [
            own if text is None else next(texts[text]) for own, text in zip(frame.ids, frame.sequence_ids, strict=True)
        ]

    def create_token_type_ids_from_sequences(
        self, token_ids_0: Sequence[int], token_ids_1: Sequence[int] | None = None
    ) -> list[int]:
        """Token types of ``build_inputs_with_special_tokens``: 1 in the second text and the [SEP] after it."""
        return self._frame(token_ids_0, token_ids_1).type_ids

    def get_special_tokens_mask(
        self,
        token_ids_0: Sequence[int],
        token_ids_1: Sequence[int] | None = None,
        already_has_special_tokens: bool = False,
    ) -> list[int]:
        """1 for special tokens, 0 for others, in ``build_inputs_with_special_tokens`` of the same ids.

        Args:
            token_ids_0: ids of a text.
            token_ids_1: ids of the second text of a pair.
            already_has_special_tokens: ``token_ids_0`` is the whole already; special is what
                ``all_special_ids`` holds.

        Raises:
            TokenizerError: a second text beside a whole.
        """
        if not already_has_special_tokens:
            return [int(text is None) for text in self._frame(token_ids_0, token_ids_1).sequence_ids]
        if token_ids_1 is not None:
            raise TokenizerError("token_ids_1 cannot be given for ids that already have special tokens: leave it out")
        special = set(self.all_special_ids)
        return [int(index in special) for index in map(int, token_ids_0)]  # tensors are equal to nothing in a set

    @property
    def is_fast(self) -> bool:
        """Whether the tokenizers library does the work, as it always does here."""
        return True

    @property
    def do_lower_case(self) -> bool | None:
        """Whether the text is lower-cased; None where it is not normalised in BERT's way."""
        return library.normalisation(self._backend).get("do_lower_case")

    @property
    def strip_accents(self) -> bool | None:
        """Whether accents are removed; None where that follows ``do_lower_case``."""
        return library.normalisation(self._backend).get("strip_accents")

    @property
    def tokenize_chinese_chars(self) -> bool | None:
        """Whether each CJK ideograph is a word; None where the text is not normalised in BERT's way."""
        return library.normalisation(self._backend).get("tokenize_chinese_chars")

    def _padding(
        self, padding: bool | str, max_length: int | None, multiple_of: int | None, side: str | None
    ) -> dict[str, Any] | None:
        return padding_settings(
            padding,
            max_length=max_length,
            model_max_length=self.model_max_length,
            multiple_of=multiple_of,
            side=side or self.padding_side,
            pad_token=self.pad_token,
            pad_token_id=self.pad_token_id,
        )

    def _is_berts(self) -> bool:
        """Whether Transformers' ConvBERT class makes the same of tokenizer.json; of others it changes some steps."""
        begin, end = self.cls_token_id, self.sep_token_id
        one, two = self._frame([0], None), self._frame([0], [0])
        return (
            isinstance(self._backend.model, WordPiece)
            and library.has_berts_steps(self._backend)
            and one.ids == [begin, *_blank(1).ids, end]
            and two.ids == [begin, *_blank(1).ids, end, *_blank(1).ids, end]
            and two.type_ids == [0, 0, 0, 1, 1]
        )

    def _is_wanted(self, name: str, asked: bool | None) -> bool:
        return name in self.model_input_names if asked is None else asked

    def _frame(self, token_ids_0: Sequence[int], token_ids_1: Sequence[int] | None) -> Encoding:
        """Blanks in place of the ids of a text, or of a pair, between their special tokens."""
        second = None if token_ids_1 is None else _blank(len(token_ids_1))
        with self._configured() as backend:
            return backend.post_process(_blank(len(token_ids_0)), second)


ConvBertTokenizerFast = ConvBertTokenizer
"""The same class under Transformers' other name: docs/decisions/0004-one-tokenizer-class.md says why."""


def _has_rest(texts: Sequence[str], max_length: int) -> bool:
    """Whether any text is longer than what its first tokens take to be found."""
    return max(map(len, texts), default=0) > _BEGINNING_CHARACTERS * max_length


def _beginnings(run: Callable[..., list[Encoding]], texts: list[str], max_length: int) -> list[Encoding]:
    """Texts cut to their first tokens, with no more of each tokenised than these take.

    What stands before a space is tokenised alike whatever follows it, so that a beginning that gives
    ``max_length`` tokens gives the right ones.
    """
    ends = [text.find(" ", _BEGINNING_CHARACTERS * max_length) for text in texts]
    encodings = run([text if end < 0 else text[:end] for text, end in zip(texts, ends, strict=True)])
    short = [i for i, end in enumerate(ends) if end >= 0 and len(encodings[i].ids) < max_length]
    for i, encoding in zip(short, run([texts[i] for i in short], short) if short else (), strict=True):
        encodings[i] = encoding
    return encodings


def _spans(encoding: Encoding, *, last: int) -> NDArray[np.int32]:
    """Each token's characters, and its word in the text with that number."""
    words = [
        -1 if word is None or text != last else word
        for word, text in zip(encoding.word_ids, encoding.sequence_ids, strict=True)
    ]
    return np.column_stack([np.array(encoding.offsets, np.int32).reshape(-1, 2), np.array(words, np.int32)])


def _blank(length: int) -> Encoding:
    encoding = Encoding()
    encoding.pad(length)
    return encoding
