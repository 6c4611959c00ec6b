from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import transformers
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import BPE, WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing

from convbert import CheckpointError, ConvBertTokenizer, TokenizerError

VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "foo", "##bar", "u.s.", "u", "s", ".", "Foo"]
TEXT = "foo newtok x<e1>Foobar Sp Tok"
IDS = [2, 5, 13, 1, 12, 11, 6, 14, 3]
ADDED = {
    "12": {"content": "<e1>", "normalized": False, "special": True},
    "13": {"content": "newtok", "normalized": True, "special": False},
    "14": {"content": "Sp Tok", "lstrip": True, "normalized": True, "special": False},
}


def write_vocab(folder: Path, tokens: list[str] = VOCAB) -> Path:
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in tokens), encoding="utf-8")
    return folder


def write_json(folder: Path, **files: Any) -> None:
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")


def test_a_checkpoint_of_transformers_4(tmp_path: Path) -> None:
    """The files that the Python tokenizer of 4.46.3 writes, without the flags that are False."""
    write_vocab(tmp_path)
    write_json(
        tmp_path,
        tokenizer_config={
            "added_tokens_decoder": ADDED,
            "additional_special_tokens": ["<e1>"],
            "clean_up_tokenization_spaces": True,
            "do_basic_tokenize": True,
            "do_lower_case": False,
            "mask_token": "[MASK]",
            "model_max_length": 1000000000000000019884624838656,
            "never_split": None,
            "strip_accents": None,
            "tokenize_chinese_chars": True,
            "tokenizer_class": "ConvBertTokenizer",
        },
        special_tokens_map={"cls_token": "ignored, as the config has added_tokens_decoder"},
        added_tokens={"<e1>": 12, "Sp Tok": 14, "newtok": 13},
    )
    tokenizer = ConvBertTokenizer.from_pretrained(tmp_path)
    assert tokenizer.encode(TEXT) == IDS
    assert tokenizer.extra_special_tokens == ["<e1>"]
    assert (tokenizer.do_lower_case, tokenizer.strip_accents, tokenizer.tokenize_chinese_chars) == (False, None, True)
    assert tokenizer.model_max_length is None
    assert tokenizer.clean_up_tokenization_spaces is True


def test_an_old_checkpoint(tmp_path: Path) -> None:
    """Before added_tokens_decoder: special_tokens_map.json and added_tokens.json."""
    write_vocab(tmp_path)
    write_json(
        tmp_path,
        tokenizer_config={"do_lower_case": False, "model_max_length": 512},
        special_tokens_map={
            "additional_special_tokens": ["<e1>"],
            "mask_token": {"content": "[MASK]", "lstrip": True, "rstrip": False, "normalized": False},
            "unk_token": "[UNK]",
        },
        added_tokens={"newtok": 13, "<e1>": 12},
    )
    tokenizer = ConvBertTokenizer.from_pretrained(tmp_path)
    assert tokenizer.encode("foo newtok<e1>foo [MASK]") == [2, 5, 13, 12, 5, 4, 3]
    assert tokenizer.encode("foo newtok<e1>foo [MASK]", return_offsets_mapping=True) == [2, 5, 13, 12, 5, 4, 3]
    offsets = tokenizer("foo  [MASK]", return_offsets_mapping=True)["offset_mapping"]
    assert offsets[2] == (3, 11)  # lstrip: the spaces before it belong to it
    assert tokenizer.decode([12, 13], skip_special_tokens=True) == "newtok"


@pytest.mark.parametrize("special", ["<e1>", "u"])
def test_a_checkpoint_of_transformers_5(tmp_path: Path, special: str) -> None:
    write_vocab(tmp_path)
    theirs = transformers.ConvBertTokenizer(
        vocab=str(tmp_path / "vocab.txt"), do_lower_case=False, extra_special_tokens=[special], model_max_length=77
    )
    theirs.add_tokens(["newtok", AddedToken("Sp Tok", lstrip=True)])
    theirs.save_pretrained(tmp_path / "saved")
    ours = ConvBertTokenizer.from_pretrained(tmp_path / "saved")
    assert ours.encode(TEXT) == theirs.encode(TEXT)
    assert ours.get_vocab() == theirs.get_vocab()
    assert ours.extra_special_tokens == [special]
    assert ours.model_max_length == 77


def rich(folder: Path, **options: Any) -> ConvBertTokenizer:
    tokenizer = ConvBertTokenizer(write_vocab(folder) / "vocab.txt", **options)
    tokenizer.add_tokens(["newtok", AddedToken("Sp Tok", lstrip=True)])
    tokenizer.add_special_tokens({"bos_token": "<s>", "extra_special_tokens": ["<e1>"]})
    return tokenizer


OPTIONS: list[dict[str, Any]] = [
    {},
    {"do_lower_case": False, "strip_accents": True, "tokenize_chinese_chars": False, "model_max_length": None},
    {"padding_side": "left", "truncation_side": "left", "clean_up_tokenization_spaces": True, "model_max_length": 9},
    {"never_split": ["u.s."]},
    {"split_special_tokens": True},
]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("removed", [None, "tokenizer.json", "vocab.txt"])
def test_what_we_write_we_read(tmp_path: Path, options: dict[str, Any], removed: str | None) -> None:
    """Either file holds the whole vocabulary."""
    tokenizer = rich(tmp_path, **options)
    tokenizer.save_pretrained(tmp_path / "saved")
    if removed:
        (tmp_path / "saved" / removed).unlink()
    again = ConvBertTokenizer.from_pretrained(tmp_path / "saved")
    assert again.fingerprint() == tokenizer.fingerprint()
    assert again.get_vocab() == tokenizer.get_vocab()
    state = {name: value for name, value in vars(tokenizer).items() if name not in ("_backend", "_lock")}
    assert {name: value for name, value in vars(again).items() if name in state} == state
    assert again.encode(TEXT + " U.S.") == tokenizer.encode(TEXT + " U.S.")


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("removed", [None, "tokenizer.json", "vocab.txt"])
def test_what_we_write_transformers_reads(tmp_path: Path, options: dict[str, Any], removed: str | None) -> None:
    ours = rich(tmp_path, **options)
    ours.save_pretrained(tmp_path / "saved")
    if removed:
        (tmp_path / "saved" / removed).unlink()
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert isinstance(theirs, transformers.ConvBertTokenizer)
    text = TEXT + " Café 日本 u <s> ." + ("" if removed == "tokenizer.json" else " u.s.")  # theirs forgets never_split
    assert theirs.encode(text, truncation=True) == ours.encode(text, truncation=True)
    assert theirs.get_vocab() == ours.get_vocab()
    assert theirs.special_tokens_map == ours.special_tokens_map
    assert theirs.extra_special_tokens == ours.extra_special_tokens
    assert (theirs.padding_side, theirs.truncation_side) == (ours.padding_side, ours.truncation_side)
    assert theirs.clean_up_tokenization_spaces == ours.clean_up_tokenization_spaces
    assert theirs.model_max_length == (ours.model_max_length or int(1e30))


@pytest.mark.parametrize("removed", [None, "tokenizer.json", "vocab.txt"])
def test_ids_survive_duplicate_lines(tmp_path: Path, removed: str | None) -> None:
    lines = [*VOCAB[:6], "foo", "##bar", "u", "foo", *VOCAB[6:], "u.s.", "last", "last"]
    tokenizer = ConvBertTokenizer(write_vocab(tmp_path, lines) / "vocab.txt")
    assert tokenizer.get_vocab() == {line: index for index, line in enumerate(lines)}
    assert len(tokenizer.get_vocab()) < tokenizer.vocab_size == len(lines)
    tokenizer.save_pretrained(tmp_path / "saved")
    if removed:
        (tmp_path / "saved" / removed).unlink()
    again = ConvBertTokenizer.from_pretrained(tmp_path / "saved")
    assert again.get_vocab() == tokenizer.get_vocab()
    assert again.vocab_size == tokenizer.vocab_size
    theirs = transformers.ConvBertTokenizer.from_pretrained(tmp_path / "saved")
    assert theirs.get_vocab() == tokenizer.get_vocab()


@pytest.mark.parametrize("removed", [None, "tokenizer.json", "vocab.txt"])
def test_ids_survive_duplicate_lines_with_tokens_added(tmp_path: Path, removed: str | None) -> None:
    tokenizer = ConvBertTokenizer(write_vocab(tmp_path, [*VOCAB[:6], *VOCAB[5:]]) / "vocab.txt")
    tokenizer.add_tokens(["newtok"])
    assert tokenizer.convert_tokens_to_ids("newtok") == len(VOCAB) + 1
    tokenizer.save_pretrained(tmp_path / "saved")
    if removed:
        (tmp_path / "saved" / removed).unlink()
    for again in (
        ConvBertTokenizer.from_pretrained(tmp_path / "saved"),
        transformers.ConvBertTokenizer.from_pretrained(tmp_path / "saved"),
    ):
        assert again.get_vocab() == tokenizer.get_vocab()
        assert again.encode("foo newtok u") == tokenizer.encode("foo newtok u") == [2, 6, 13, 9, 3]


def test_the_vocabulary_alone(tmp_path: Path) -> None:
    tokenizer = rich(tmp_path)
    assert tokenizer.save_vocabulary(tmp_path, "my") == (str(tmp_path / "my-vocab.txt"),)
    assert (tmp_path / "my-vocab.txt").read_text(encoding="utf-8").splitlines() == VOCAB
    assert tokenizer.save_vocabulary(str(tmp_path)) == (str(tmp_path / "vocab.txt"),)


def bpe(folder: Path, **state: Any) -> Path:
    backend = Tokenizer(BPE({"[UNK]": 0, "a": 1, "b": 2, "ab": 3, "<p>": 4}, [("a", "b")], unk_token="[UNK]"))
    (folder / "tokenizer.json").write_text(json.dumps({**json.loads(backend.to_str()), **state}), encoding="utf-8")
    return folder


def test_another_algorithm(tmp_path: Path) -> None:
    """tokenizer.json decides, not the class name; it has no frame here, and BERT's settings do not apply."""
    write_json(bpe(tmp_path), tokenizer_config={"tokenizer_class": "ConvBertTokenizer", "pad_token": "<p>"})
    tokenizer = ConvBertTokenizer.from_pretrained(tmp_path, do_lower_case=True)
    assert tokenizer(["abA", ""], padding=True)["input_ids"] == [[3, 0], [4, 4]]
    assert tokenizer.build_inputs_with_special_tokens([3], [1, 2]) == [3, 1, 2]
    assert (tokenizer.unk_token, tokenizer.pad_token_id, tokenizer.cls_token) == ("[UNK]", 4, None)
    assert tokenizer.do_lower_case is None
    assert [Path(path).name for path in tokenizer.save_vocabulary(tmp_path, "my")] == ["my-vocab.json", "my-merges.txt"]
    tokenizer.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved" / "vocab.txt").exists()
    assert ConvBertTokenizer.from_pretrained(tmp_path / "saved").fingerprint() == tokenizer.fingerprint()
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert theirs(["abA", ""], padding=True)["input_ids"] == [[3, 0], [4, 4]]
    with pytest.raises(TokenizerError, match=r"never_split .* keep words whole with add_tokens"):
        ConvBertTokenizer.from_pretrained(tmp_path, never_split=["ab"])


def test_limits_in_a_tokenizer_file_do_not_count(tmp_path: Path) -> None:
    truncation = {"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 0}
    padding = {"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None}
    padding |= {"pad_id": 4, "pad_type_id": 0, "pad_token": "<p>"}
    tokenizer = ConvBertTokenizer.from_pretrained(bpe(tmp_path, truncation=truncation, padding=padding))
    assert tokenizer("aba")["input_ids"] == [3, 1]
    plain = ConvBertTokenizer.from_pretrained(bpe(tmp_path))
    assert plain.fingerprint() == tokenizer.fingerprint()


def without_frame(folder: Path) -> Path:
    vocab = {token: index for index, token in enumerate(VOCAB)}
    Tokenizer(WordPiece(vocab, unk_token="[UNK]")).save(str(folder / "tokenizer.json"))
    write_json(folder, config={"model_type": "convbert"})  # tells Transformers' AutoTokenizer the kind
    return folder


def test_wordpiece_without_a_frame_gets_berts(tmp_path: Path) -> None:
    tokenizer = ConvBertTokenizer.from_pretrained(without_frame(tmp_path))
    assert tokenizer.encode("foobar", "u") == [2, 5, 6, 3, 8, 3]
    assert tokenizer.decode([5, 6]) == "foobar"


@pytest.mark.parametrize("tokenizer_class", ["PreTrainedTokenizerFast", "TokenizersBackend"])
def test_classes_that_add_no_frame_get_none(tokenizer_class: str, tmp_path: Path) -> None:
    write_json(without_frame(tmp_path), tokenizer_config={"tokenizer_class": tokenizer_class})
    ours, theirs = ConvBertTokenizer.from_pretrained(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert ours.encode("foobar") == theirs.encode("foobar") == [5, 6]
    ours.save_pretrained(tmp_path)
    assert transformers.AutoTokenizer.from_pretrained(tmp_path).encode("foobar") == [5, 6]
    assert ConvBertTokenizer.from_pretrained(tmp_path).encode("foobar") == [5, 6]


def test_a_frame_of_its_own_is_not_taken_for_berts(tmp_path: Path) -> None:
    """Which Transformers' ConvBERT class puts in its place."""
    backend = Tokenizer.from_file(str(without_frame(tmp_path) / "tokenizer.json"))
    backend.post_processor = TemplateProcessing(single="$A [SEP]", pair="$A $B [SEP]", special_tokens=[("[SEP]", 3)])
    backend.normalizer, backend.pre_tokenizer = BertNormalizer(), BertPreTokenizer()
    backend.save(str(tmp_path / "tokenizer.json"))
    write_json(tmp_path, tokenizer_config={"tokenizer_class": "PreTrainedTokenizerFast"})
    ours = ConvBertTokenizer.from_pretrained(tmp_path)
    ours.save_pretrained(tmp_path / "again")
    write_json(tmp_path / "again", config={"model_type": "convbert"})
    for one in (ours, ConvBertTokenizer.from_pretrained(tmp_path / "again")):
        assert one.encode("foobar", "u") == [5, 6, 8, 3]
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "again").encode("foobar", "u") == [5, 6, 8, 3]


def test_added_tokens_keep_what_tokenizer_json_says_of_them(tmp_path: Path) -> None:
    """Folders of Transformers before 4.34 have added_tokens.json beside it, which holds ids alone."""
    tokens = [
        AddedToken("NORM", normalized=False),
        AddedToken("<sw>", single_word=True),
        AddedToken("<l>", lstrip=True),
    ]
    before = ConvBertTokenizer(write_vocab(tmp_path) / "vocab.txt")
    before.add_tokens(tokens)
    before.save_pretrained(tmp_path)
    write_json(tmp_path, added_tokens={str(token): before.convert_tokens_to_ids(str(token)) for token in tokens})
    write_json(tmp_path, tokenizer_config={"tokenizer_class": "ConvBertTokenizer", "do_lower_case": True})
    after = ConvBertTokenizer.from_pretrained(tmp_path)
    assert after.added_tokens_decoder == before.added_tokens_decoder
    for text in ("NORM Norm", "foo<sw> <sw>", "foo <l>"):
        assert after.encode(text) == before.encode(text)


def test_sides_that_transformers_keeps_in_tokenizer_json_alone(tmp_path: Path) -> None:
    theirs = transformers.ConvBertTokenizer(vocab=str(write_vocab(tmp_path) / "vocab.txt"))
    theirs.truncation_side = theirs.padding_side = "left"
    theirs(["foo", "foo bar"], padding=True, truncation=True, max_length=4)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = ConvBertTokenizer.from_pretrained(tmp_path / "theirs")
    ours.save_pretrained(tmp_path / "ours")
    for one in (ours, ConvBertTokenizer.from_pretrained(tmp_path / "ours")):
        assert (one.truncation_side, one.padding_side) == ("left", "left")
        limits = {"padding": "max_length", "truncation": True, "max_length": 4}
        for text in ("foo u s .", "foo"):
            assert one(text, **limits)["input_ids"] == theirs(text, **limits)["input_ids"]


@pytest.mark.parametrize("names", [["input_ids", "attention_mask"], ["input_ids", "token_type_ids"]])
def test_a_call_returns_what_the_model_takes(names: list[str], tmp_path: Path) -> None:
    settings = {"tokenizer_class": "ConvBertTokenizer", "model_input_names": names}
    write_json(write_vocab(tmp_path), tokenizer_config=settings, config={"model_type": "convbert"})
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ours = ConvBertTokenizer.from_pretrained(tmp_path)
    has_types = "token_type_ids" in names
    assert ours.encode_batch(["foo"], ["u s"]).token_type_ids == [[0, 0, 0, *[int(has_types)] * 3]]
    usual = ConvBertTokenizer.from_pretrained(tmp_path, model_input_names=["input_ids", "token_type_ids"])
    assert (ours.fingerprint() == usual.fingerprint()) == has_types
    assert dict(ours("foo", return_token_type_ids=True)).keys() == {*names, "token_type_ids"}
    ours.save_pretrained(tmp_path)
    for one in (
        ours,
        ConvBertTokenizer.from_pretrained(tmp_path),
        transformers.AutoTokenizer.from_pretrained(tmp_path),
    ):
        assert dict(one("foo", "u s")) == dict(theirs("foo", "u s"))


BERTS = ("Bert", "Electra", "DPRContextEncoder", "DPRReader", "DistilBert")


@pytest.mark.parametrize("names", [None, ["input_ids", "token_type_ids", "attention_mask"]])
@pytest.mark.parametrize(
    ("tokenizer_class", "has_json"),
    [
        *((f"{name}Tokenizer", has_json) for name in BERTS for has_json in (False, True)),
        ("DistilBertTokenizerFast", False),
        ("TokenizersBackend", True),
        ("RetriBertTokenizer", True),
    ],
)
def test_the_class_decides_whether_there_are_token_types(
    tokenizer_class: str, has_json: bool, names: list[str] | None, tmp_path: Path
) -> None:
    transformers.ConvBertTokenizer(vocab=str(write_vocab(tmp_path) / "vocab.txt")).save_pretrained(tmp_path)
    settings = {"tokenizer_class": tokenizer_class, **({} if names is None else {"model_input_names": names})}
    write_json(tmp_path, tokenizer_config=settings, config={"model_type": "convbert"})
    if not has_json:
        (tmp_path / "tokenizer.json").unlink()
    ours, theirs = ConvBertTokenizer.from_pretrained(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert dict(ours("foo", "u s")) == dict(theirs("foo", "u s"))
    has_types = "token_type_ids" in theirs("foo", "u s")
    assert ours.encode_batch(["foo"], ["u s"]).token_type_ids == [[0, 0, 0, *[int(has_types)] * 3]]


def test_token_types_of_a_bare_tokenizer_are_those_of_the_version_that_wrote_it(tmp_path: Path) -> None:
    """4.46.3 writes PreTrainedTokenizerFast and gives token types; 5 writes TokenizersBackend and gives none."""
    transformers.ConvBertTokenizer(vocab=str(write_vocab(tmp_path) / "vocab.txt")).save_pretrained(tmp_path)
    write_json(tmp_path, tokenizer_config={"tokenizer_class": "PreTrainedTokenizerFast"})
    assert ConvBertTokenizer.from_pretrained(tmp_path)("foo", "u")["token_type_ids"] == [0, 0, 0, 1, 1]


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"max_len": 4}, "foo u s ."),
        ({"max_len": 4, "model_max_length": 5}, "foo u s ."),
        ({"never_split": ["[UNK]", "[SEP]", "[PAD]", "[CLS]", "[MASK]"]}, "Foo [MASK] u"),
    ],
)
def test_settings_of_old_checkpoints(settings: dict[str, Any], text: str, tmp_path: Path) -> None:
    write_json(write_vocab(tmp_path), tokenizer_config=settings, config={"model_type": "convbert"})
    ours, theirs = ConvBertTokenizer.from_pretrained(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert ours.encode(text, truncation=True) == theirs.encode(text, truncation=True)


@pytest.mark.parametrize("lower", [True, False])
def test_what_transformers_5_writes_beside_a_tokenizer_json_does_not_override_it(lower: bool, tmp_path: Path) -> None:
    made = transformers.ConvBertTokenizer(vocab=str(write_vocab(tmp_path) / "vocab.txt"), do_lower_case=lower)
    made.save_pretrained(tmp_path / "made")
    changed = transformers.ConvBertTokenizer.from_pretrained(tmp_path / "made", do_lower_case=not lower)
    changed.save_pretrained(tmp_path / "changed")
    theirs = transformers.ConvBertTokenizer.from_pretrained(tmp_path / "changed")
    assert theirs.encode("Foo") == made.encode("Foo")
    assert ConvBertTokenizer.from_pretrained(tmp_path / "changed").encode("Foo") == theirs.encode("Foo")


def test_a_class_that_splits_texts_in_another_way_needs_its_tokenizer_json(tmp_path: Path) -> None:
    write_json(write_vocab(tmp_path), tokenizer_config={"tokenizer_class": "BertJapaneseTokenizer"})
    with pytest.raises(TokenizerError, match=r"tokenizer_class \('BertJapaneseTokenizer'\) .* save its tokenizer.json"):
        ConvBertTokenizer.from_pretrained(tmp_path)
    without_frame(tmp_path)
    assert ConvBertTokenizer.from_pretrained(tmp_path).encode("foobar") == [2, 5, 6, 3]


def test_settings_may_be_changed_on_loading(tmp_path: Path) -> None:
    rich(tmp_path).save_pretrained(tmp_path / "saved")
    tokenizer = ConvBertTokenizer.from_pretrained(tmp_path / "saved", do_lower_case=False, model_max_length=4)
    assert tokenizer.tokenize("Foo foo") == ["Foo", "foo"]
    assert len(tokenizer.encode("foo foo foo", truncation=True)) == 4


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"tokenizer_config": ["list"]}, r"tokenizer_config\.json must hold a JSON object"),
        ({"tokenizer_config": {"mask_token": "<mask>"}}, r"mask_token \('<mask>'\) is not in the vocabulary"),
        ({"added_tokens": {"foo": 99}}, "'foo' has the id 99 in the checkpoint and 5 in its vocabulary"),
        ({"added_tokens": {"new": 99}}, "'new' has the id 99 in the checkpoint and 12"),
        ({"tokenizer_config": {"never_split": ["nope"]}}, "'nope'"),
        ({"tokenizer_config": {"model_max_length": "512"}}, r"model_max_length \('512'\)"),
        ({"tokenizer_config": {"model_max_length": float("nan")}}, r"model_max_length \(nan\)"),
        ({"tokenizer_config": {"model_max_length": -1}}, r"model_max_length \(-1\) .* at least 1"),
        ({"tokenizer_config": {"do_lower_case": "no"}}, r"do_lower_case \('no'\) must be true or false"),
        ({"tokenizer_config": {"padding_side": 1}}, r"padding_side \(1\) must be a string"),
        ({"tokenizer_config": {"never_split": "a"}}, r"never_split \('a'\) must be a list"),
        ({"tokenizer_config": {"never_split": [1]}}, r"never_split \(1\) must be a string"),
        ({"tokenizer_config": {"mask_token": ["[MASK]"]}}, r"mask_token \(\['\[MASK\]'\]\) must be a string"),
        ({"tokenizer_config": {"mask_token": {"lstrip": True}}}, r"mask_token \(None\) must be a string"),
        ({"tokenizer_config": {"mask_token": {"content": "a", "lstrip": 1}}}, r"lstrip of mask_token \(1\)"),
        ({"tokenizer_config": {"mask_token": "\ud800"}}, r"mask_token \('.ud800'\) holds half of a surrogate pair"),
        ({"tokenizer_config": {"extra_special_tokens": 3}}, r"extra_special_tokens \(3\) must be a list"),
        ({"tokenizer_config": {"added_tokens_decoder": [3]}}, r"added_tokens_decoder \(\[3\]\) must be an object"),
        ({"tokenizer_config": {"added_tokens_decoder": {"x": "a"}}}, "an added token has the id 'x'"),
        ({"added_tokens": {"new": [99]}}, r"an added token has the id \[99\]"),
    ],
)
def test_files_that_contradict_each_other_are_refused(tmp_path: Path, files: dict[str, Any], message: str) -> None:
    write_json(write_vocab(tmp_path), **files)
    with pytest.raises(TokenizerError, match=message):
        ConvBertTokenizer.from_pretrained(tmp_path)


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint folder"):
        ConvBertTokenizer.from_pretrained(tmp_path / "none")
    with pytest.raises(TokenizerError, match=r"has neither tokenizer\.json nor vocab\.txt"):
        ConvBertTokenizer.from_pretrained(tmp_path)
    (write_vocab(tmp_path) / "tokenizer_config.json").write_text("{")
    with pytest.raises(TokenizerError, match=rf"the tokenizer of {tmp_path}: .* cannot be read"):
        ConvBertTokenizer.from_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[" * 100_000)
    with pytest.raises(TokenizerError, match=r"tokenizer_config.json cannot be read"):
        ConvBertTokenizer.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("vocab", "message"),
    [({}, "the vocabulary is empty"), ({"[UNK]": 0, "a": 2**32 - 1}, "ids up to 4294967295, but only 2 tokens")],
)
def test_a_vocabulary_of_nothing_but_holes_is_refused(tmp_path: Path, vocab: dict[str, int], message: str) -> None:
    document = json.loads(Tokenizer(WordPiece({}, unk_token="[UNK]")).to_str())
    document["model"]["vocab"] = vocab
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    with pytest.raises(TokenizerError, match=message):
        ConvBertTokenizer.from_pretrained(tmp_path)


def test_a_repeated_piece_leaves_no_room_for_tokens(tmp_path: Path) -> None:
    pieces = [["<unk>", 0.0], ["a", -1.0], ["a", -2.0], ["b", -3.0]]
    model = {"type": "Unigram", "unk_id": 0, "vocab": pieces, "byte_fallback": False}
    (tmp_path / "tokenizer.json").write_text(json.dumps({"version": "1.0", "added_tokens": [], "model": model}))
    tokenizer = ConvBertTokenizer.from_pretrained(tmp_path)
    with pytest.raises(TokenizerError, match="holds pieces twice, and no token for the id 1: no token can be added"):
        tokenizer.add_tokens("c")
