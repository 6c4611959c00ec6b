from __future__ import annotations

import copy
import pickle
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken

from convbert import BatchEncoding, ConvBertTokenizer, ConvBertTokenizerFast, TokenizerError
from convbert.tokenization.inputs import encode

VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "foo", "##bar", "u.s.", "[unused1]", "u", "s", ".", "-"]
VOCAB += ["café", "cafe"]


@pytest.fixture
def vocab_file(tmp_path: Path) -> Path:
    path = tmp_path / "vocab.txt"
    path.write_text("".join(f"{token}\n" for token in VOCAB), encoding="utf-8")
    return path


@pytest.fixture
def tokenizer(vocab_file: Path) -> ConvBertTokenizer:
    return ConvBertTokenizer(vocab_file)


def test_both_names_are_one_class(tokenizer: ConvBertTokenizer) -> None:
    assert ConvBertTokenizerFast is ConvBertTokenizer
    assert tokenizer.is_fast
    assert tokenizer("foo").is_fast  # as Transformers calls a batch with the library's results
    assert not BatchEncoding({}).is_fast


# Transformers 5 has no oracle for these: the values are what 4.46.3's Python ConvBertTokenizer gives for VOCAB.


def test_frames_as_in_transformers_4(tokenizer: ConvBertTokenizer) -> None:
    assert tokenizer.build_inputs_with_special_tokens([5, 6]) == [2, 5, 6, 3]
    assert tokenizer.build_inputs_with_special_tokens([5, 6], [7]) == [2, 5, 6, 3, 7, 3]
    assert tokenizer.build_inputs_with_special_tokens([], []) == [2, 3, 3]
    assert tokenizer.create_token_type_ids_from_sequences([5, 6]) == [0, 0, 0, 0]
    assert tokenizer.create_token_type_ids_from_sequences([5, 6], [7]) == [0, 0, 0, 0, 1, 1]
    assert tokenizer.get_special_tokens_mask([5, 6]) == [1, 0, 0, 1]
    assert tokenizer.get_special_tokens_mask([5, 6], [7]) == [1, 0, 0, 1, 0, 1]
    for whole in ([2, 5, 1, 3, 0, 0], np.array([2, 5, 1, 3, 0, 0]), torch.tensor([2, 5, 1, 3, 0, 0])):
        assert tokenizer.get_special_tokens_mask(whole, already_has_special_tokens=True) == [1, 0, 1, 1, 1, 1]
    with pytest.raises(TokenizerError, match="token_ids_1"):
        tokenizer.get_special_tokens_mask([5], [6], already_has_special_tokens=True)
    assert (tokenizer.num_special_tokens_to_add(), tokenizer.num_special_tokens_to_add(pair=True)) == (2, 3)
    assert tokenizer.encode("foo", "") == [2, 5, 3, 3]


US, UNUSED = ["u", ".", "s", "."], ["[UNK]", "[UNK]", "[UNK]"]


@pytest.mark.parametrize(
    ("lower", "never_split", "expected"),
    [
        (True, [], [US, US, ["[UNK]", *US, "[UNK]"], [*US, *US, "[SEP]", *US], UNUSED, UNUSED, ["[UNK]", *UNUSED]]),
        (True, ["u.s."], [["u.s."], ["u.s."], ["[UNK]", *US, "[UNK]"], ["u.s.", "u.s.", "[SEP]", "u.s."], UNUSED]),
        (
            True,
            ["[unused1]"],
            [
                US,
                US,
                ["[UNK]", *US, "[UNK]"],
                [*US, *US, "[SEP]", *US],
                ["[unused1]"],
                ["[unused1]"],
                ["[UNK]", *UNUSED],
            ],
        ),
        (False, ["u.s."], [["u.s."], ["[UNK]", ".", "[UNK]", "."], ["[UNK]", *US, "[UNK]"]]),
        (False, ["[unused1]", "u.s."], [["u.s."], ["[UNK]", ".", "[UNK]", "."], ["[UNK]", *US, "[UNK]"]]),
        (False, ["[unused1]"], [US, ["[UNK]", ".", "[UNK]", "."]]),
    ],
)
def test_words_that_are_never_split_as_in_transformers_4(
    vocab_file: Path, lower: bool, never_split: list[str], expected: list[list[str]]
) -> None:
    texts = ["u.s.", "U.S.", "(u.s.)", "u.s. u.s.[SEP]u.s.", "[unused1]", "[UNUSED1]", "x[unused1]"]
    tokenizer = ConvBertTokenizer(vocab_file, do_lower_case=lower, never_split=never_split)
    assert [tokenizer.tokenize(text) for text in texts[: len(expected)]] == expected


def test_words_that_are_never_split_among_other_white_space(vocab_file: Path) -> None:
    tokenizer = ConvBertTokenizer(vocab_file, never_split=["u.s."])
    assert tokenizer.tokenize("foo\nu.s.\tfoobar") == ["foo", "u.s.", "foo", "##bar"]  # 4.46.3, as above
    offsets = tokenizer("foo U.S. -", return_offsets_mapping=True, add_special_tokens=False)["offset_mapping"]
    assert offsets == [(0, 3), (4, 8), (9, 10)]


@pytest.mark.parametrize(
    ("options", "word", "message"),
    [
        ({}, "U.S.", r"never_split \('U\.S\.'\) is no word of the normalised text, which reads 'u\.s\.'"),
        ({}, "café", "reads 'cafe'"),
        ({}, "u s", "is no word"),
        ({}, "x-y", r"never_split \('x-y'\) is not in the vocabulary: add it"),
    ],
)
def test_words_that_could_never_be_kept_whole_are_refused(
    vocab_file: Path, options: dict[str, Any], word: str, message: str
) -> None:
    with pytest.raises(TokenizerError, match=message):
        ConvBertTokenizer(vocab_file, never_split=[word], **options)


def test_many_threads_with_different_limits(tokenizer: ConvBertTokenizer) -> None:
    """The library keeps truncation and padding as state: without a lock, threads get each other's."""
    texts = ["foo " * 50] * 20

    def lengths(limit: int) -> set[int]:
        results = [tokenizer(texts, truncation=True, max_length=limit)["input_ids"] for _ in range(30)]
        results += [tokenizer.encode_batch(texts, max_length=limit + 1).input_ids for _ in range(30)]
        return {len(ids) for result in results for ids in result}

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lengths, [3, 9, 17, 33])) == [{3, 4}, {9, 10}, {17, 18}, {33, 34}]


def test_calls_leave_no_trace(tokenizer: ConvBertTokenizer) -> None:
    before = tokenizer.fingerprint()
    expected = tokenizer.encode_batch(["foo " * 20])
    tokenizer("foo", truncation=True, max_length=5, padding="max_length", pad_to_multiple_of=5)
    assert tokenizer.encode_batch(["foo " * 20]) == expected
    assert tokenizer("foo")["input_ids"] == [2, 5, 3]
    tokenizer.encode_batch(["foo"], max_length=3)
    assert tokenizer.fingerprint() == before


def test_the_fingerprint_tells_what_decides_the_ids(vocab_file: Path) -> None:
    variants = [{}, {"do_lower_case": False}, {"truncation_side": "left"}, {"never_split": ["u.s."]}]
    prints = [ConvBertTokenizer(vocab_file, **options).fingerprint() for options in variants]
    assert len(set(prints)) == len(variants)
    assert ConvBertTokenizer(vocab_file, padding_side="left", model_max_length=7).fingerprint() == prints[0]
    tokenizer = ConvBertTokenizer(vocab_file)
    tokenizer.add_tokens(["new"])
    assert tokenizer.fingerprint() not in prints


@pytest.mark.parametrize("twin", [copy.deepcopy, copy.copy, lambda t: pickle.loads(pickle.dumps(t))])
def test_copies_work(tokenizer: ConvBertTokenizer, twin: Any) -> None:
    other = twin(tokenizer)
    assert other("u.s. foobar")["input_ids"] == tokenizer("u.s. foobar")["input_ids"]
    assert twin(tokenizer("foo"))["input_ids"] == [2, 5, 3]


def test_a_copy_shares_no_limits(tokenizer: ConvBertTokenizer) -> None:
    """They are the backend's state."""
    assert copy.copy(tokenizer)._backend is not tokenizer._backend


def test_unpadded_batches(tokenizer: ConvBertTokenizer) -> None:
    assert tokenizer.encode_batch(["foobar", ""])[:2] == ([[2, 5, 6, 3], [2, 3]], [[0] * 4, [0] * 2])
    pairs = tokenizer.encode_batch(["foo foo foo", "u"], ["s", "foobar"], max_length=5)
    assert pairs[:2] == ([[2, 5, 3, 10, 3], [2, 9, 3, 5, 3]], [[0, 0, 0, 1, 1], [0, 0, 0, 1, 1]])
    assert tokenizer.encode_batch([]) == ([], [], [], None)


def test_the_same_alone_and_in_a_batch(tokenizer: ConvBertTokenizer) -> None:
    """Also for a pair with an empty second text, which Transformers takes for no pair where it is alone."""
    alone, batch = tokenizer("foo", ""), tokenizer(["foo", "u"], ["", "s"])
    assert alone["input_ids"] == batch["input_ids"][0] == [2, 5, 3, 3]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.lists(
            st.sampled_from(["foo", "bar", "u" * 120, "é", " ", "日本", "́", "s", "[MASK]", "\n", "!"]), max_size=60
        )
    ),
    st.integers(2, 9),
    st.booleans(),
)
def test_only_the_beginning_of_a_text_that_is_cut_is_tokenised(
    tokenizer: ConvBertTokenizer, words: list[list[str]], max_length: int, joined: bool
) -> None:
    """The library, which tokenises all of it, tells what is expected."""
    texts = [("" if joined else " ").join(text) * 3 for text in words]
    found = tokenizer.encode_batch(texts, max_length=max_length, spans=True)
    for text, ids, spans in zip(texts, found.input_ids, found.spans or [], strict=True):
        whole = tokenizer(text, truncation=True, max_length=max_length, return_offsets_mapping=True)
        assert ids == whole["input_ids"]
        assert spans[:, :2].tolist() == [list(pair) for pair in whole["offset_mapping"]]


def test_a_pair_whose_first_text_is_long_stays_a_pair(tokenizer: ConvBertTokenizer) -> None:
    long = "foo " * 50
    pair = tokenizer(long, "u s", truncation=True, max_length=9)
    assert tokenizer.encode_batch([long], ["u s"], max_length=9).input_ids == [pair["input_ids"]]


def test_windows_begin_with_the_text_whichever_end_is_cut_else(vocab_file: Path) -> None:
    text = "foo u s foobar u s"
    right, left = (ConvBertTokenizer(vocab_file, truncation_side=side) for side in ("right", "left"))
    assert right.encode_batch([text], max_length=5, stride=1) == left.encode_batch([text], max_length=5, stride=1)


def test_a_token_with_a_space_is_not_cut_apart(vocab_file: Path) -> None:
    tokenizer = ConvBertTokenizer(vocab_file, added_tokens={len(VOCAB): AddedToken("foo u")})
    text = "☃" * 60 + " foo u" + " s" * 100  # of the first tokens' characters the last are "foo"
    (ids,) = tokenizer.encode_batch([text], max_length=4).input_ids
    assert ids == tokenizer(text, truncation=True, max_length=4)["input_ids"] == [2, 1, len(VOCAB), 3]


def test_of_a_huge_text_the_library_sees_little(tokenizer: ConvBertTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def recording(run: Any, inputs: list[str]) -> Any:
        seen.extend(map(len, inputs))
        return encode(run, inputs)

    monkeypatch.setattr("convbert.tokenization.tokenizer.encode", recording)
    assert tokenizer.encode_batch(["foo bar " * 100_000], max_length=6).input_ids == [[2, 5, 1, 5, 1, 3]]
    assert max(seen) < 200


def test_left_truncation(vocab_file: Path) -> None:
    tokenizer = ConvBertTokenizer(vocab_file, truncation_side="left")
    assert tokenizer.encode_batch(["u s foo"], max_length=4).input_ids == [[2, 10, 5, 3]]


def test_results_are_a_mapping_with_attributes(tokenizer: ConvBertTokenizer) -> None:
    result = tokenizer("foo u")
    assert isinstance(result, BatchEncoding)
    assert {**result} == {"input_ids": [2, 5, 9, 3], "token_type_ids": [0] * 4, "attention_mask": [1] * 4}
    assert result.input_ids == [2, 5, 9, 3]
    assert result.tokens() == ["[CLS]", "foo", "u", "[SEP]"]
    with pytest.raises(AttributeError, match="no 'offset_mapping'"):
        _ = result.offset_mapping
    assert set(tokenizer("foo", return_token_type_ids=False, return_attention_mask=False)) == {"input_ids"}


def test_tensors_move(tokenizer: ConvBertTokenizer) -> None:
    moved = tokenizer("foo", return_tensors="pt").to("meta")
    assert {tensor.device for tensor in moved.values()} == {torch.device("meta")}


def test_lists_stay_where_they_are(tokenizer: ConvBertTokenizer) -> None:
    assert tokenizer("foo").to("meta")["input_ids"] == [2, 5, 3]
    assert tokenizer("foo", return_tensors="pt").to("meta", non_blocking=True)["input_ids"].is_meta


def test_no_texts(tokenizer: ConvBertTokenizer) -> None:
    assert dict(tokenizer([])) == {"input_ids": [], "token_type_ids": [], "attention_mask": []}
    assert tokenizer([], return_tensors="pt")["input_ids"].dtype == torch.int64


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ("a\ud800b", r"text 0 holds the lone surrogate U\+D800 at character 1.*errors='replace'"),
        (["fine", "bad \udfff"], r"text 1 holds the lone surrogate U\+DFFF at character 4"),
        (["fine", None], "text 1 holds None, which is no text"),
        (5, "text 0 holds 5"),
        (np.array(["foo", "u"]), r"text 0 holds array\(.*which is no text"),  # and no pair
        (deque(["foo", "u"]), r"text 0 holds deque\(.*which is no text"),
        ([np.array(["foo", "u"]), "u"], r"text 0 holds array\(.*which is no text"),
        ([["foo", "u"]], "pass is_split_into_words=True"),
        ([("foo", "\ud800")], "text 0 holds the lone surrogate"),
    ],
)
def test_what_is_no_text_is_refused(tokenizer: ConvBertTokenizer, texts: Any, message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        tokenizer(texts)
    if isinstance(texts, list) and not isinstance(texts[0], (list, tuple)):
        for limit in (None, 8):
            if limit is None or "surrogate" not in message:  # what is cut off is not looked at
                with pytest.raises(TokenizerError, match=message):
                    tokenizer.encode_batch(texts, max_length=limit)


def test_a_text_whose_beginning_is_not_enough_is_named(tokenizer: ConvBertTokenizer) -> None:
    long = "foo" + " " * 200 + "u \ud800"
    with pytest.raises(TokenizerError, match=r"text 2 holds the lone surrogate U\+D800"):
        tokenizer.encode_batch(["foo", "u", long], max_length=8)


def test_words_that_are_no_text_are_refused(tokenizer: ConvBertTokenizer) -> None:
    with pytest.raises(TokenizerError, match=r"text 1 holds the lone surrogate U\+D83D at character 0"):
        tokenizer([["foo"], ["u", "\ud83d"]], is_split_into_words=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"truncation": True, "max_length": 1}, r"max_length \(1\) is below the 2 special tokens"),
        ({"truncation": True, "max_length": 0}, r"max_length \(0\) must be a whole number of at least 1"),
        ({"max_length": "5"}, r"max_length \('5'\)"),
        ({"max_length": 2, "return_overflowing_tokens": True}, r"stride \(0\) must be below the 0 tokens"),
        ({"max_length": 4, "stride": 2}, r"stride \(2\) must be below the 2 tokens that max_length \(4\) leaves"),
        ({"max_length": 4, "stride": -1}, r"stride \(-1\)"),
        ({"truncation": "longest"}, r"truncation \('longest'\) is unknown: choose one of longest_first"),
        ({"truncation": "only_second", "max_length": 3}, "Second sequence not provided"),
        ({"padding": "max"}, r"padding \('max'\) is unknown: choose one of longest, max_length"),
        ({"padding": True, "padding_side": "middle"}, r"padding_side \('middle'\)"),
        ({"padding": True, "pad_to_multiple_of": 0}, r"pad_to_multiple_of \(0\)"),
        (
            {"padding": True, "truncation": True, "max_length": 5, "pad_to_multiple_of": 4},
            r"max_length \(5\) is no multiple of pad_to_multiple_of \(4\)",
        ),
        ({"return_tensors": "tf"}, r"return_tensors \('tf'\) is unknown"),
        ({"text_pair": ["foo"]}, "text 0 holds|must be"),
    ],
)
def test_impossible_calls_are_refused(tokenizer: ConvBertTokenizer, options: dict[str, Any], message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        tokenizer("foo foo foo", **options)


def test_batches_that_do_not_fit_are_refused(tokenizer: ConvBertTokenizer) -> None:
    with pytest.raises(TokenizerError, match="2 texts cannot be paired with 1"):
        tokenizer(["foo", "u"], ["s"])
    with pytest.raises(TokenizerError, match="2 texts cannot be paired with 1"):
        tokenizer.encode_batch(["foo", "u"], ["s"])
    with pytest.raises(TokenizerError, match=r"text_pair \('s'\) must be a list"):
        tokenizer(["f"], "s")
    for kind in ("pt", "np"):
        with pytest.raises(TokenizerError, match="padding=True"):
            tokenizer(["foo", "foo foo"], return_tensors=kind)
    with pytest.raises(TokenizerError, match=r"max_length \(1\) is below the 2 special tokens"):
        tokenizer.encode_batch(["foo"], max_length=1)


def test_a_stride_that_leaves_a_pair_no_room_is_refused(
    tokenizer: ConvBertTokenizer, capfd: pytest.CaptureFixture[str]
) -> None:
    """The library panics here, which is no Exception."""
    options = {"truncation": "only_second", "max_length": 10, "stride": 4}
    with pytest.raises(TokenizerError, match=r"text 1 cannot be tokenised: .*stride"):
        tokenizer(["foo", "foo foo foo foo"], ["u " * 9, "u " * 9], **options)
    assert "panicked" in capfd.readouterr().err
    assert tokenizer("foo")["input_ids"] == [2, 5, 3]


@pytest.mark.parametrize("ids", [[-100], [[2, 3]], ["foo"], 2**40])
def test_what_are_no_ids_are_refused(tokenizer: ConvBertTokenizer, ids: Any) -> None:
    with pytest.raises(TokenizerError, match="token_ids"):
        tokenizer.decode(ids)


def test_decoding_takes_one_id_and_arrays(tokenizer: ConvBertTokenizer) -> None:
    assert tokenizer.decode(5) == "foo"
    assert tokenizer.decode(torch.tensor([5, 6])) == "foobar"
    assert tokenizer.batch_decode(np.array([[5, 6], [7, 0]])) == ["foobar", "u.s. [PAD]"]
    assert tokenizer.convert_ids_to_tokens(5) == "foo"
    assert tokenizer.convert_ids_to_tokens(torch.tensor([5, 99])) == ["foo", None]


def test_a_misspelt_setting_is_refused(vocab_file: Path) -> None:
    with pytest.raises(TypeError, match="'do_lowercase'"):
        ConvBertTokenizer(vocab_file, do_lowercase=True)


def test_a_vocabulary_is_needed(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"give vocab_file \(vocab\.txt\)"):
        ConvBertTokenizer()
    with pytest.raises(TokenizerError, match="cannot be read as a vocabulary"):
        ConvBertTokenizer(tmp_path / "none.txt")
    (tmp_path / "empty.txt").touch()
    with pytest.raises(TokenizerError, match="is empty"):
        ConvBertTokenizer(tmp_path / "empty.txt")
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(TokenizerError, match="cannot be read as a tokenizer"):
        ConvBertTokenizer(tokenizer_file=tmp_path / "bad.json")


@pytest.mark.parametrize("missing", ["[UNK]", "[CLS]", "[SEP]"])
def test_a_vocabulary_without_what_every_text_needs_is_refused(tmp_path: Path, missing: str) -> None:
    path = tmp_path / "vocab.txt"
    path.write_text("".join(f"{token}\n" for token in VOCAB if token != missing), encoding="utf-8")
    role = missing.strip("[]").lower() + "_token"
    with pytest.raises(TokenizerError, match=role):
        ConvBertTokenizer(path)
    with pytest.raises(TokenizerError, match=rf"{role} \('nope'\)"):
        ConvBertTokenizer(path, **{role: "nope"})


def test_a_vocabulary_without_padding_or_mask_still_encodes(tmp_path: Path) -> None:
    path = tmp_path / "vocab.txt"
    path.write_text("<unk>\n[CLS]\n[SEP]\nfoo\n")
    tokenizer = ConvBertTokenizer(path, unk_token="<unk>")
    assert tokenizer("foo bar")["input_ids"] == [1, 3, 0, 2]
    assert (tokenizer.pad_token, tokenizer.mask_token_id, tokenizer.unk_token) == (None, None, "<unk>")
    with pytest.raises(TokenizerError, match="padding needs a pad_token"):
        tokenizer(["foo"], padding=True)
    tokenizer.pad_token = "[SEP]"
    assert tokenizer(["foo", ""], padding=True)["input_ids"][1] == [1, 2, 2]
