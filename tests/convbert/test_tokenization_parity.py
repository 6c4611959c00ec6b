"""Every result equals Transformers' own tokenizer (5.x), on generated texts."""

from __future__ import annotations

import itertools
import pickle
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE

from convbert import BatchEncoding, ConvBertTokenizer, TokenizerError

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
FOREIGN = "éèüßñçğışöİıÅåﬁǅΣςσжЁѐक्षि한국어日本語中文𠀀שלוםمرحبا"
WORDS = ["the", "free", "mail", "offer", "now", "run", "##ning", "un", "##able", "U.S.", "don", "t", "s"]
WORDS += ["naïve", "Füße", "café", "straße", "İstanbul", "ışık"]
VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[unused0]", *WORDS, *LETTERS, *FOREIGN]
VOCAB += [f"##{c}" for c in LETTERS + FOREIGN] + [*".,!?'-()[]{}@#$%^&*_=+<>/\\|`~\"«»。、।"] + [*"😀👍♥🇹🇷👩‍💻"]

words = st.sampled_from([w.removeprefix("##") for w in WORDS] + ["The", "OFFER", "running", "unable", "zzz", "[MASK]"])
nasty = st.sampled_from(
    [
        "",
        "İIiı",
        "i̇",  # what İ becomes in lower case
        "é",
        "a" * 101,  # WordPiece gives up after 100 characters
        "ß" * 100,
        "日本語テキスト",
        "한국어",
        "👩‍👩‍👧‍👦",
        "🏳️‍🌈",
        "🇹🇷",
        "👍🏽",
        "a\u200bb\u200cc\u200dd\ufeffe\u2060f",
        "a\u00adb",
        "\x00\x01\x1b[0m\x7f\x80\x85",
        "\ufffd\ufffe\uffff",
        "a\tb\nc\rd\x0be\x0cf\u2028g\u2029h",
        "\u00a0a\u3000b\u2003c",
        "שָׁלוֹם עֲלֵיכֶם",
        "\u202eمرحبا بالعالم\u202c",
        "ﷺ",
        "क्षि",
        "Z̶̨̛͙̬͈a̷̛l̴g̵o",
        "ǅ ﬁ Σς ẞ",
        "\U000e0001\U0010ffff",
        "[CLS][SEP]",
        "[ MASK ]",
        "x[PAD]y",
        "##able",
        "don't",
        "$1,000.00",
        "a" + "." * 40,
    ]
)
pieces = words | nasty | st.text(st.sampled_from(LETTERS + FOREIGN + " .,'-\t"), max_size=8) | st.text(max_size=4)
texts = st.lists(st.tuples(pieces, st.sampled_from([" ", "", "  ", "\n", "-"])), max_size=8).map(
    lambda parts: "".join(itertools.chain.from_iterable(parts))
)
short_texts = st.lists(st.sampled_from(["the", "mail", "now"]), max_size=3).map(" ".join)

EVERYTHING = {
    "return_special_tokens_mask": True,
    "return_offsets_mapping": True,
    "return_length": True,
}
NORMALISATIONS = [
    {"do_lower_case": lower, "strip_accents": accents, "tokenize_chinese_chars": chinese}
    for lower, accents, chinese in itertools.product([True, False], [None, True, False], [True, False])
]


@pytest.fixture(scope="module")
def vocab_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vocab") / "vocab.txt"
    path.write_text("".join(f"{token}\n" for token in dict.fromkeys(VOCAB)), encoding="utf-8")
    return path


@cache
def both(vocab_file: Path, **options: Any) -> tuple[ConvBertTokenizer, transformers.ConvBertTokenizer]:
    return ConvBertTokenizer(vocab_file, **options), transformers.ConvBertTokenizer(
        vocab=str(vocab_file), **{"model_max_length": 512, **options}
    )


def assert_same(ours: BatchEncoding, theirs: transformers.BatchEncoding) -> None:
    assert dict(ours) == dict(theirs)
    for index, encoding in enumerate(theirs.encodings):
        assert ours.tokens(index) == encoding.tokens
        assert ours.word_ids(index) == encoding.word_ids
        assert ours.sequence_ids(index) == encoding.sequence_ids


def assert_same_call(vocab_file: Path, *texts: Any, tokenizer: dict[str, Any] | None = None, **options: Any) -> None:
    ours, theirs = both(vocab_file, **(tokenizer or {}))
    options = {**EVERYTHING, **options}
    assert_same(ours(*texts, **options), theirs(*texts, verbose=False, **options))


def examples(n: int) -> settings:
    return settings(max_examples=n, derandomize=True, deadline=None, database=None)


@pytest.mark.parametrize("normalisation", NORMALISATIONS, ids=lambda n: "-".join(map(str, n.values())))
@examples(120)
@given(batch=st.lists(texts, min_size=1, max_size=4))
def test_texts(vocab_file: Path, normalisation: dict[str, Any], batch: list[str]) -> None:
    assert_same_call(vocab_file, batch, tokenizer=normalisation)
    assert_same_call(vocab_file, batch[0], tokenizer=normalisation, add_special_tokens=False)
    ours, theirs = both(vocab_file, **normalisation)
    assert ours.encode_batch(batch).input_ids == theirs(batch)["input_ids"]
    assert ours.encode(batch[0]) == theirs.encode(batch[0])
    assert ours.tokenize(batch[0]) == theirs.tokenize(batch[0])


@examples(300)
@given(batch=st.lists(st.tuples(texts, texts), min_size=1, max_size=4), lower=st.booleans())
def test_pairs(vocab_file: Path, batch: list[tuple[str, str]], lower: bool) -> None:
    first, second = map(list, zip(*batch, strict=True))
    tokenizer = {"do_lower_case": lower}
    assert_same_call(vocab_file, first, second, tokenizer=tokenizer)
    assert_same_call(vocab_file, batch, tokenizer=tokenizer)
    ours, theirs = both(vocab_file, **tokenizer)
    encoded, expected = ours.encode_batch(first, second), theirs(first, second)
    assert (encoded.input_ids, encoded.token_type_ids) == (expected["input_ids"], expected["token_type_ids"])


@examples(400)
@given(
    batch=st.lists(st.tuples(texts, texts), min_size=1, max_size=3),
    is_pair=st.booleans(),
    truncation=st.sampled_from([None, True, False, "longest_first", "do_not_truncate"]),
    max_length=st.none() | st.integers(3, 40),
    padding=st.sampled_from([False, True, "longest", "max_length", "do_not_pad"]),
    padding_side=st.sampled_from([None, "left", "right"]),
    truncation_side=st.sampled_from(["left", "right"]),
    model_max_length=st.sampled_from([8, 512]),
    windows=st.booleans(),
)
def test_truncation_and_padding(
    vocab_file: Path,
    batch: list[tuple[str, str]],
    is_pair: bool,
    max_length: int | None,
    windows: bool,
    truncation_side: str,
    model_max_length: int,
    **options: Any,
) -> None:
    columns = [list(column) for column in zip(*batch, strict=True)][: 1 + is_pair]
    tokenizer = {"truncation_side": truncation_side, "model_max_length": model_max_length}
    windows = windows and (max_length or 8) > 3  # with no room for text theirs gives windows that are too long
    assert_same_call(
        vocab_file,
        *columns,
        tokenizer=tokenizer,
        max_length=max_length,
        return_overflowing_tokens=windows,
        **options,
    )


@examples(200)
@given(
    batch=st.lists(st.tuples(texts, texts), min_size=1, max_size=3),
    multiple=st.integers(1, 9),
    padding=st.sampled_from([True, "max_length"]),
    max_length=st.integers(1, 3),
)
def test_lengths_rounded_up(
    vocab_file: Path, batch: list[tuple[str, str]], multiple: int, padding: bool | str, max_length: int
) -> None:
    first, second = map(list, zip(*batch, strict=True))
    options = {"padding": padding, "pad_to_multiple_of": multiple}
    assert_same_call(vocab_file, first, second, **options, max_length=max_length * multiple, truncation=False)
    room = max_length * multiple + 4 * multiple
    assert_same_call(vocab_file, first, second, **options, max_length=room, truncation=True)


@examples(300)
@given(
    question=short_texts,
    contexts=st.lists(texts, min_size=1, max_size=3),
    truncation=st.sampled_from(["only_first", "only_second", "longest_first"]),
    max_length=st.integers(12, 24),
    stride=st.integers(0, 3),
    padding=st.sampled_from([False, True, "max_length"]),
    lower=st.booleans(),
)
def test_stride_windows_of_pairs(
    vocab_file: Path,
    question: str,
    contexts: list[str],
    truncation: str,
    lower: bool,
    **options: Any,
) -> None:
    columns = [[question] * len(contexts), contexts]
    if truncation == "only_first":
        columns.reverse()
    tokenizer = {"do_lower_case": lower}
    options |= {"truncation": truncation, "return_overflowing_tokens": True}
    assert_same_call(vocab_file, *columns, tokenizer=tokenizer, **options)
    if columns[1][0]:  # theirs takes a single pair with an empty second text for no pair, unlike in a batch
        assert_same_call(vocab_file, columns[0][0], columns[1][0], tokenizer=tokenizer, **options)


@examples(200)
@given(
    text=texts,
    max_length=st.integers(6, 20),
    stride=st.integers(0, 3),
    truncation=st.sampled_from([True, "only_first"]),
    return_tensors=st.sampled_from([None, "pt", "np"]),
)
def test_stride_windows_of_one_text(vocab_file: Path, text: str, return_tensors: str | None, **options: Any) -> None:
    options |= {"return_overflowing_tokens": True, "padding": "max_length"}
    if return_tensors is None:
        assert_same_call(vocab_file, text, **options)
    else:
        assert_same_arrays(vocab_file, text, return_tensors=return_tensors, **options)


@examples(300)
@given(
    batch=st.lists(st.tuples(st.lists(pieces, max_size=6), st.lists(pieces, max_size=6)), min_size=1, max_size=3),
    is_pair=st.booleans(),
    max_length=st.none() | st.integers(5, 30),
)
def test_words(
    vocab_file: Path, batch: list[tuple[list[str], list[str]]], is_pair: bool, max_length: int | None
) -> None:
    columns = [list(column) for column in zip(*batch, strict=True)][: 1 + is_pair]
    options = {"is_split_into_words": True, "max_length": max_length}
    assert_same_call(vocab_file, *columns, padding=True, truncation=max_length is not None, **options)
    if all(column[0] for column in columns):
        assert_same_call(vocab_file, *(column[0] for column in columns), **options)


@examples(150)
@given(text=texts, other=texts, is_pair=st.booleans())
def test_places_in_the_text(vocab_file: Path, text: str, other: str, is_pair: bool) -> None:
    columns = [[text], [other]][: 1 + is_pair]
    ours, theirs = (tokenizer(*columns) for tokenizer in both(vocab_file))
    for token in range(len(ours["input_ids"][0])):
        assert ours.token_to_chars(token) == theirs.token_to_chars(token)
        assert ours.token_to_word(token) == ours.token_to_word(0, token) == theirs.token_to_word(token)
        assert ours.token_to_sequence(token) == ours.token_to_sequence(0, token) == theirs.token_to_sequence(token)
    for sequence, column in enumerate(columns):
        for char in range(len(column[0])):
            expected = theirs.char_to_token(0, char, sequence)
            assert ours.char_to_token(0, char, sequence) == ours.char_to_token(char, None, sequence) == expected
            expected = theirs.char_to_word(0, char, sequence)
            assert ours.char_to_word(0, char, sequence) == ours.char_to_word(char, None, sequence) == expected
        for word in {w for w, s in zip(ours.word_ids(), ours.sequence_ids(), strict=True) if s == sequence}:
            assert ours.word_to_tokens(0, word, sequence) == theirs.word_to_tokens(0, word, sequence)
            mine, expected = ours.word_to_chars(0, word, sequence), theirs.word_to_chars(0, word, sequence)
            assert (mine.start, mine.end) == (expected.start, expected.end)
            assert mine == ours.word_to_chars(word, None, sequence)
    assert ours.n_sequences == theirs.n_sequences == len(columns)


def test_results_are_reached_by_number_and_joined_with_others(vocab_file: Path) -> None:
    ours, theirs = (tokenizer(["the mail", "now"]) for tokenizer in both(vocab_file))
    assert ours[1].tokens == theirs[1].tokens == ["[CLS]", "now", "[SEP]"]
    assert [result.ids for result in ours[:2]] == [result.ids for result in theirs[:2]] == ours["input_ids"]
    labels = {"labels": [0, 1]}
    for mine, expected in ((ours | labels, theirs | labels), (labels | ours, labels | theirs)):
        assert isinstance(mine, BatchEncoding)
        assert dict(mine) == dict(expected)
        with pytest.raises(TokenizerError, match="ask the encoding that the tokenizer gave"):
            mine.tokens()
    assert {**ours, **labels} == {**theirs, **labels}
    assert ours.word_to_chars(0, 99) is None  # an error of Python in Transformers


def assert_same_arrays(vocab_file: Path, *texts: Any, return_tensors: str, **options: Any) -> None:
    ours, theirs = both(vocab_file)
    options = {**EVERYTHING, "padding": True, "return_tensors": return_tensors, **options}
    mine, expected = ours(*texts, **options), theirs(*texts, **options)
    assert mine.keys() == expected.keys()
    for name, array in mine.items():
        assert isinstance(array, torch.Tensor if return_tensors == "pt" else np.ndarray)
        assert (array.dtype, array.shape) == (expected[name].dtype, expected[name].shape)
        assert (array == expected[name]).all()


@pytest.mark.parametrize("kind", ["pt", "np"])
@pytest.mark.parametrize("given_texts", ["one text", ["a text", "a longer text"]])
def test_tensors(vocab_file: Path, given_texts: str | list[str], kind: str) -> None:
    assert_same_arrays(vocab_file, given_texts, return_tensors=kind)


@pytest.mark.parametrize("split", [True, False])
def test_special_tokens_in_a_text(vocab_file: Path, split: bool) -> None:
    ours, theirs = both(vocab_file, split_special_tokens=split)
    text = "foo [MASK] u [SEP]"
    assert ours(text).input_ids == theirs(text).input_ids
    assert (ours.mask_token_id in ours(text).input_ids) is not split
    assert list(ours.encode_batch([text]).input_ids[0]) == theirs(text).input_ids
    again = pickle.loads(pickle.dumps(ours))
    assert again(text).input_ids == ours(text).input_ids
    assert again.fingerprint() == ours.fingerprint()


@examples(300)
@given(
    ids=st.lists(st.integers(0, len(VOCAB) + 20), max_size=20),
    skip=st.booleans(),
    clean=st.none() | st.booleans(),
    default=st.booleans(),
)
def test_decoding(vocab_file: Path, ids: list[int], skip: bool, clean: bool | None, default: bool) -> None:
    ours, theirs = both(vocab_file, clean_up_tokenization_spaces=default)
    options = {"skip_special_tokens": skip, "clean_up_tokenization_spaces": clean}
    assert ours.decode(ids, **options) == theirs.decode(ids, **options)
    assert ours.decode(np.array(ids, np.int64), **options) == theirs.decode(ids, **options)
    assert ours.batch_decode([ids, ids[:3]], **options) == theirs.batch_decode([ids, ids[:3]], **options)
    tokens = ours.convert_ids_to_tokens(ids, skip_special_tokens=skip)
    assert tokens == theirs.convert_ids_to_tokens(ids, skip_special_tokens=skip)
    known = [token for token in tokens if token is not None]
    assert ours.convert_tokens_to_ids([*known, "no such"]) == theirs.convert_tokens_to_ids([*known, "no such"])
    assert ours.convert_tokens_to_string(known) == theirs.convert_tokens_to_string(known)


ADDED = ["Straße", "new word", "un", "<e1>", "lstr", "Word"]


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("lower", [False, True])
@examples(200)
@given(batch=st.lists(st.lists(pieces | st.sampled_from(ADDED), max_size=6).map(" ".join), min_size=1, max_size=3))
def test_added_tokens(vocab_file: Path, special: bool, lower: bool, batch: list[str]) -> None:
    ours, theirs = with_added(vocab_file, special, lower)
    assert_same(ours(batch, **EVERYTHING), theirs(batch, **EVERYTHING))
    ids = ours(batch)["input_ids"]
    for skip in (False, True):
        assert ours.batch_decode(ids, skip_special_tokens=skip) == theirs.batch_decode(ids, skip_special_tokens=skip)


@cache
def with_added(
    vocab_file: Path, special: bool, lower: bool
) -> tuple[ConvBertTokenizer, transformers.ConvBertTokenizer]:
    ours, theirs = both.__wrapped__(vocab_file, do_lower_case=lower)
    for tokenizer in (ours, theirs):
        flagged = [AddedToken("lstr", lstrip=True), AddedToken("Word", single_word=True)]
        tokenizer.add_tokens([*ADDED[:-2], *flagged], special_tokens=special)
        tokenizer.add_special_tokens({"bos_token": "<bos>", "extra_special_tokens": ["<x>", "<y>"]})
    assert ours.get_vocab() == ours.vocab == theirs.get_vocab() == theirs.vocab
    assert ours.is_fast is theirs.is_fast is True
    assert list(ours.added_tokens_decoder.items()) == list(theirs.added_tokens_decoder.items())
    assert ours.get_added_vocab() == theirs.get_added_vocab()
    assert (len(ours), ours.bos_token_id) == (len(theirs), theirs.bos_token_id)
    assert ours.special_tokens_map == theirs.special_tokens_map
    assert ours.all_special_tokens == theirs.all_special_tokens
    assert ours.all_special_ids == theirs.all_special_ids
    return ours, theirs


@pytest.fixture(scope="module")
def bpe_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-pair tokenizer with a frame of its own, as one Korean ConvBERT has it."""
    folder = tmp_path_factory.mktemp("bpe")
    letters = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]", *dict.fromkeys(LETTERS + FOREIGN + "▁.,")]
    merges = [("t", "h"), ("th", "e"), ("▁", "the"), ("한", "국"), ("▁", "한국"), ("a", "b")]
    vocab = {token: index for index, token in enumerate([*letters, *("".join(merge) for merge in merges)])}
    backend = Tokenizer(BPE(vocab, merges, unk_token="[UNK]", fuse_unk=True))
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocab["[CLS]"]), ("[SEP]", vocab["[SEP]"])],
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        cls_token="[CLS]",
        sep_token="[SEP]",
        pad_token="[PAD]",
        unk_token="[UNK]",
        mask_token="[MASK]",
        model_max_length=64,
    ).save_pretrained(folder)
    return folder


@examples(200)
@given(batch=st.lists(st.tuples(texts, texts), min_size=1, max_size=3), is_pair=st.booleans())
def test_bpe(bpe_folder: Path, batch: list[tuple[str, str]], is_pair: bool) -> None:
    ours, theirs = both_bpe(bpe_folder)
    columns = [list(column) for column in zip(*batch, strict=True)][: 1 + is_pair]
    options = {**EVERYTHING, "padding": True, "truncation": True, "return_token_type_ids": True}
    assert_same(ours(*columns, **options), theirs(*columns, **options))
    ids = ours(*columns)["input_ids"]
    assert ours.batch_decode(ids) == theirs.batch_decode(ids)


@cache
def both_bpe(folder: Path) -> tuple[ConvBertTokenizer, transformers.PreTrainedTokenizerFast]:
    return ConvBertTokenizer.from_pretrained(folder), transformers.PreTrainedTokenizerFast.from_pretrained(folder)
