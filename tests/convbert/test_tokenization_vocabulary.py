from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from tokenizers import AddedToken

from convbert import ConvBertTokenizer, TokenizerError

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def tokenizer_of(tmp_path: Path, *tokens: str) -> ConvBertTokenizer:
    path = tmp_path / "vocab.txt"
    path.write_text("".join(f"{token}\n" for token in (*SPECIAL, *tokens)), encoding="utf-8")
    return ConvBertTokenizer(path)


@pytest.fixture
def tokenizer(tmp_path: Path) -> ConvBertTokenizer:
    return tokenizer_of(tmp_path, "a", "b")


@pytest.fixture
def with_holes(tmp_path: Path) -> ConvBertTokenizer:
    """The lines 5, 6 and 8 stand again further down: the ids 5, 6 and 8 belong to no token."""
    return tokenizer_of(tmp_path, "a", "a", "b", "a", "c", "a")


def test_special_tokens_by_role(tokenizer: ConvBertTokenizer) -> None:
    expected = {"unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]"}
    expected["mask_token"] = "[MASK]"
    assert tokenizer.special_tokens == tokenizer.special_tokens_map == expected
    assert (tokenizer.cls_token, tokenizer.cls_token_id, tokenizer.bos_token, tokenizer.bos_token_id) == (
        "[CLS]",
        2,
        None,
        None,
    )
    assert tokenizer.all_special_tokens == ["[UNK]", "[SEP]", "[PAD]", "[CLS]", "[MASK]"]
    assert tokenizer.all_special_ids == [1, 3, 0, 2, 4]


def test_the_last_of_duplicate_lines_counts(with_holes: ConvBertTokenizer) -> None:
    assert with_holes.convert_tokens_to_ids(["a", "b", "c", "nope"]) == [10, 7, 9, 1]
    assert with_holes.convert_ids_to_tokens([5, 6, 7, 8, 9, 10]) == [None, None, "b", None, "c", "a"]
    assert with_holes.vocab_size == len(with_holes) == 11
    assert len(with_holes.get_vocab()) == 8


def test_lines_are_read_as_transformers_reads_them(tmp_path: Path) -> None:
    path = tmp_path / "vocab.txt"
    path.write_bytes("\r\n".join([*SPECIAL, "free ", "mail\t", "a\rb", "now\u3000"]).encode())
    oracle = transformers.BertTokenizer(str(path))
    for text in ("free mail now", "mail"):
        assert ConvBertTokenizer(path)(text)["input_ids"] == oracle(text)["input_ids"]
    assert ConvBertTokenizer(path)("free mail now")["input_ids"] == [2, 5, 6, 8, 3]


def test_new_tokens_never_take_the_id_of_another(with_holes: ConvBertTokenizer) -> None:
    """The library counts the 8 tokens and would give the new ones the ids 8, 9 and 10."""
    before = with_holes.get_vocab()
    assert with_holes.add_tokens(["x", "y", "a"]) == 2
    assert with_holes.convert_tokens_to_ids(["x", "y"]) == [11, 12]
    assert with_holes.get_vocab().items() >= before.items()
    assert with_holes.tokenize("axbyc [unused id 5]") == ["a", "x", "b", "y", "c", *["[UNK]"] * 5]
    assert with_holes.vocab_size == 13


def test_added_tokens_are_found_before_the_text_is_split(tokenizer: ConvBertTokenizer) -> None:
    assert tokenizer.add_tokens("New") == 1
    assert tokenizer.add_tokens(["New", AddedToken("<s>", special=True), "b"]) == 1
    assert tokenizer.encode("a new<s>b") == [2, 5, 7, 8, 6, 3]
    assert tokenizer.get_added_vocab().keys() == {*SPECIAL, "New", "<s>", "b"}


def test_special_tokens_are_added_by_role(tokenizer: ConvBertTokenizer) -> None:
    assert tokenizer.add_special_tokens({"bos_token": "<s>", "mask_token": "b", "pad_token": "[PAD]"}) == 1
    assert (tokenizer.bos_token, tokenizer.bos_token_id, tokenizer.mask_token_id) == ("<s>", 7, 6)
    assert tokenizer.add_special_tokens({"additional_special_tokens": ["<x>", "<y>"]}) == 2
    assert tokenizer.add_special_tokens({"extra_special_tokens": ["<z>"]}, replace_extra_special_tokens=False) == 1
    assert tokenizer.extra_special_tokens == ["<x>", "<y>", "<z>"]
    tokenizer.add_special_tokens({"bos_token": "<s>"})  # which says nothing of the extra ones
    assert tokenizer.extra_special_tokens == ["<x>", "<y>", "<z>"]
    tokenizer.add_special_tokens({"extra_special_tokens": ["<y>"]})
    assert tokenizer.extra_special_tokens == ["<y>"]
    assert tokenizer.all_special_tokens[-2:] == ["b", "<y>"]
    assert tokenizer.decode([5, 6, 7, 5], skip_special_tokens=True) == "a a"
    assert tokenizer.decode([5, 6, 7, 5], skip_special_tokens=1) == "a a"


def test_roles_can_be_assigned(tokenizer: ConvBertTokenizer) -> None:
    tokenizer.pad_token = "b"
    assert tokenizer(["", "a"], padding=True)["input_ids"] == [[2, 3, 6], [2, 5, 3]]
    with pytest.raises(TokenizerError, match=r"eos_token \('</s>'\) is not in the vocabulary"):
        tokenizer.eos_token = "</s>"
    with pytest.raises(TokenizerError, match=r"mask_token \(6\) must be a token of the vocabulary, or None"):
        tokenizer.mask_token = 6


@pytest.mark.parametrize(
    ("attribute", "value"),
    [("pad_token", "b"), ("pad_token_id", 6), ("mask_token", None), ("pad_token_id", None)],
)
def test_roles_are_assigned_and_kept_as_in_transformers(
    tokenizer: ConvBertTokenizer, attribute: str, value: object, tmp_path: Path
) -> None:
    theirs = transformers.ConvBertTokenizer(vocab=str(tmp_path / "vocab.txt"))
    role = attribute.removesuffix("_id")
    for one in (tokenizer, theirs):
        setattr(one, attribute, value)
        one.save_pretrained(tmp_path / "saved")
        for written in (one, *(cls.from_pretrained(tmp_path / "saved") for cls in (type(tokenizer), type(theirs)))):
            assert getattr(written, role) == ("b" if value else None)
            assert getattr(written, f"{role}_id") == (6 if value else None)
        assert dict(one.special_tokens_map) == tokenizer.special_tokens


@pytest.mark.parametrize("role", ["pad_token", "unk_token", "cls_token", "sep_token", "mask_token", "bos_token"])
def test_null_in_the_config_changes_no_id_as_in_transformers(tmp_path: Path, role: str) -> None:
    tokenizer_of(tmp_path, "a", "b")
    (tmp_path / "tokenizer_config.json").write_text(f'{{"{role}": null}}')
    ours, theirs = (cls.from_pretrained(tmp_path) for cls in (ConvBertTokenizer, transformers.ConvBertTokenizer))
    assert ours("a b")["input_ids"] == theirs("a b")["input_ids"]
    if role not in ("cls_token", "sep_token"):  # there they still frame each text, without a name
        assert getattr(ours, role) is getattr(theirs, role) is None


@pytest.mark.parametrize("token_id", [7, -1, "a", 2.0])
def test_an_id_without_a_token_is_none_of_a_role(tokenizer: ConvBertTokenizer, token_id: object) -> None:
    with pytest.raises(TokenizerError, match=r"pad_token_id \(.*\) is the id of no token: give one .* below 7"):
        tokenizer.pad_token_id = token_id
    assert (tokenizer.pad_token, tokenizer.pad_token_id) == ("[PAD]", 0)
    tokenizer.pad_token_id = np.int64(6)  # an array's element is a number
    assert (tokenizer.pad_token, tokenizer.pad_token_id) == ("b", 6)


@pytest.mark.parametrize("role", ["unk_token", "cls_token", "sep_token"])
def test_what_frames_every_text_cannot_be_changed_later(tokenizer: ConvBertTokenizer, role: str) -> None:
    with pytest.raises(TokenizerError, match=f"{role} .* is part of every text"):
        tokenizer.add_special_tokens({role: "a"})
    with pytest.raises(TokenizerError, match="is part of every text"):
        setattr(tokenizer, role, "a")
    with pytest.raises(TokenizerError, match="is part of every text"):
        setattr(tokenizer, role, None)
    with pytest.raises(TokenizerError, match="is part of every text"):
        setattr(tokenizer, f"{role}_id", 5)
    assert tokenizer.add_special_tokens({role: tokenizer.special_tokens[role]}) == 0


@pytest.mark.parametrize(
    ("name", "given", "stray"),
    [
        ("pad_token", None, "None"),
        ("pad_token", 5, "5"),
        ("eos_token", ["<x>"], r"\['<x>'\]"),
        ("extra_special_tokens", ["<x>", None], "None"),
    ],
)
def test_what_is_no_token_is_refused_before_any_is_added(
    tokenizer: ConvBertTokenizer, name: str, given: object, stray: str
) -> None:
    n_before = len(tokenizer)
    with pytest.raises(TokenizerError, match=rf"{name} \({stray}\) must be a token: tokenizer.pad_token = None"):
        tokenizer.add_special_tokens({"mask_token": "<m>", name: given})  # type: ignore[dict-item]
    assert (len(tokenizer), tokenizer.mask_token) == (n_before, "[MASK]")


@pytest.mark.parametrize("given", ["<xy>", ["<xy>"], {"image_token": "<xy>"}])
def test_one_extra_token_is_one_and_not_its_characters_or_its_name(
    tokenizer: ConvBertTokenizer, given: Any, tmp_path: Path
) -> None:
    assert tokenizer.add_special_tokens({"extra_special_tokens": given}) == 1
    made = ConvBertTokenizer(tmp_path / "vocab.txt", extra_special_tokens=given)
    assert tokenizer.extra_special_tokens == made.extra_special_tokens == ["<xy>"]
    older = ConvBertTokenizer(tmp_path / "vocab.txt", additional_special_tokens=given)
    assert older.extra_special_tokens == ["<xy>"]
    assert ConvBertTokenizer(tmp_path / "vocab.txt", extra_special_tokens=None).extra_special_tokens == []
    with pytest.raises(TokenizerError, match=r"extra_special_tokens \(5\) must be a token"):
        ConvBertTokenizer(tmp_path / "vocab.txt", extra_special_tokens=[5])  # type: ignore[list-item]


def test_an_unknown_role_is_refused(tokenizer: ConvBertTokenizer) -> None:
    with pytest.raises(TokenizerError, match="'sap_token' is no special token: choose one of bos_token"):
        tokenizer.add_special_tokens({"sap_token": "a"})
