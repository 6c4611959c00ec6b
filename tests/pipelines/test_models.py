from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from convbert import (
    ConvBertConfig,
    ConvBertForMaskedLM,
    ConvBertForMultipleChoice,
    ConvBertForQuestionAnswering,
    ConvBertForSequenceClassification,
    ConvBertForTokenClassification,
    ConvBertModel,
)
from convbert.checkpoints import fingerprint
from convbert.models import PreTrainedModel
from pipelines import models
from pipelines.encode import Inputs
from pipelines.errors import ModelError, SpecError
from pipelines.models import plan_passes, weights_fingerprint
from pipelines.spec import JobSpec, flag
from tests.conftest import save_checkpoint, tiny_config


def spec(**changes: Any) -> JobSpec:
    return JobSpec.of({"input": ["in"], "output": "out", **changes})


def test_a_plan_says_what_the_checkpoint_predicts(checkpoint: Path) -> None:
    (only,) = plan_passes(spec(model=str(checkpoint)))
    (head,) = only.heads
    assert (head.name, head.head.task, head.head.labels) == ("prediction", "text-classification", ["ham", "spam"])
    assert (only.encoding.max_length, only.encoding.inputs) == (128, Inputs("text", ("text",)))


def test_a_setting_that_no_head_looks_at_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    tagger = save_checkpoint(tmp_path / "tagger", architecture="ConvBertForTokenClassification")
    topics = save_checkpoint(tmp_path / "topics", problem_type="multi_label_classification")
    both = {"topic": str(topics), "entities": str(tagger)}
    for changes in ({"text_pair_column": "b"}, {"threshold": 0.7}, {"normalize": True}, {"question_column": "q"}):
        with pytest.raises(SpecError, match=f"{flag(next(iter(changes)))}: no head of this job looks at it"):
            plan_passes(spec(model=str(tagger), **changes))
    plan_passes(spec(model=str(tagger), text_column="body", threshold=0.5, aggregation="max"))
    plan_passes(spec(head=both, text_pair_column="b", threshold=0.7, aggregation="max"))
    with pytest.raises(SpecError, match="--stride: no head"):
        plan_passes(spec(head=both, stride=7))
    plan_passes(spec(head=both, stride=7, long_text="window"))
    with pytest.raises(SpecError, match="--threshold: no head"):
        plan_passes(spec(model=str(checkpoint), threshold=0.7))  # of two labels the likelier one is found
    with pytest.raises(SpecError, match="--window-pooling: no head"):
        plan_passes(spec(model=str(checkpoint), window_pooling="max"))
    plan_passes(spec(model=str(checkpoint), window_pooling="max", long_text="window"))


@pytest.mark.parametrize("architectures", [None, 3, "ConvBertForMaskedLM", [], [1], [["ConvBertModel"]], ["BertModel"]])
def test_a_checkpoint_for_no_known_task_is_refused(architectures: object, checkpoint: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoint, tmp_path / "copy")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": architectures}))
    with pytest.raises(ModelError, match=r"is a checkpoint for (no task|BertModel) \(architectures in config.json\)"):
        plan_passes(spec(model=str(folder)))


def test_the_shorter_of_model_and_tokenizer_is_the_limit(checkpoint: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoint, tmp_path / "copy")
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 64}')
    assert plan_passes(spec(model=str(folder)))[0].encoding.max_length == 64


@pytest.mark.parametrize(("changes", "n_special"), [({}, 2), ({"text_pair_column": "other"}, 3)])
def test_a_length_without_room_for_text_is_refused(changes: dict[str, Any], n_special: int, checkpoint: Path) -> None:
    with pytest.raises(ModelError, match=rf"--head prediction: --max-length \({n_special}\) leaves no token for"):
        plan_passes(spec(model=str(checkpoint), max_length=n_special, **changes))
    plan_passes(spec(model=str(checkpoint), max_length=n_special + 1, **changes))


def test_a_checkpoint_without_room_for_text_is_named_with_what_decides(checkpoint: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoint, tmp_path / "copy")
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 2}')
    with pytest.raises(
        ModelError, match=rf"the 2 tokens that {folder} takes at most leave none .*model_max_length in its"
    ):
        plan_passes(spec(model=str(folder)))


@pytest.mark.parametrize("max_length", [3, 4, 5, 6, 128])
def test_windows_of_any_length_go_on_by_themselves(max_length: int, checkpoint: Path) -> None:
    (plan,) = plan_passes(spec(model=str(checkpoint), long_text="window", max_length=max_length))
    assert plan.encoding.stride == min(max_length // 2, max_length - 3)  # two special tokens, and one that is new


def test_heads_on_an_identical_encoder_share_its_pass(checkpoint: Path, tmp_path: Path) -> None:
    twin = shutil.copytree(checkpoint, tmp_path / "twin")
    model = transformers.ConvBertForSequenceClassification.from_pretrained(twin)
    torch.nn.init.normal_(model.classifier.out_proj.weight)
    model.save_pretrained(twin)
    other = save_checkpoint(tmp_path / "other", seed=5)
    passes = plan_passes(spec(head={"a": str(checkpoint), "b": str(other), "c": str(twin)}))
    assert [[head.name for head in p.heads] for p in passes] == [["a", "c"], ["b"]]
    fingerprints = [head.fingerprint for p in passes for head in p.heads]
    assert len(set(fingerprints)) == 3


@pytest.mark.parametrize("setting", [{"hidden_act": "relu"}, {"layer_norm_eps": 1e-3}])
def test_equal_weights_with_other_settings_are_another_encoder(
    setting: dict[str, Any], checkpoint: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(checkpoint, tmp_path / "copy")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **setting}))
    passes = plan_passes(spec(head={"a": str(checkpoint), "b": str(folder)}))
    assert [[head.name for head in p.heads] for p in passes] == [["a"], ["b"]]
    assert passes[0].heads[0].fingerprint != passes[1].heads[0].fingerprint


SETTINGS: list[dict[str, Any]] = [
    {"hidden_act": "relu"},
    {"hidden_dropout_prob": 0.5},
    {"attention_probs_dropout_prob": 0.5},
    {"initializer_range": 1.0},
    {"layer_norm_eps": 1e-3},
    {"pad_token_id": None},
    {"bos_token_id": 3, "eos_token_id": 4},
    {"num_attention_heads": 8, "head_ratio": 4},
    {"classifier_dropout": 0.5},
    {"extra": {"summary_type": "first"}},
    {"extra": {"summary_type": "mean"}},
    {"extra": {"summary_type": "cls_index"}},
    {"extra": {"summary_activation": "tanh"}},
    {"extra": {"summary_activation": "linear"}},
    {"extra": {"summary_first_dropout": 0.5, "summary_last_dropout": 0.5}},
]
"""Fields of a config.json that leave all names and shapes as they are, one other value each."""


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
@pytest.mark.parametrize(
    "kind",
    [
        ConvBertModel,
        ConvBertForMaskedLM,
        ConvBertForMultipleChoice,
        ConvBertForQuestionAnswering,
        ConvBertForSequenceClassification,
        ConvBertForTokenClassification,
    ],
)
def test_a_fingerprint_tells_what_changes_the_numbers_and_nothing_else(
    kind: type[PreTrainedModel], setting: dict[str, Any]
) -> None:
    config = ConvBertConfig.from_dict(tiny_config().to_dict())
    torch.manual_seed(0)
    model = kind(config).eval()
    other = kind(replace(config, **setting)).eval()
    other.load_state_dict(model.state_dict())
    ids = torch.arange(1, 9).view((1, 2, 4) if kind is ConvBertForMultipleChoice else (2, 4))
    with torch.inference_mode():
        pairs = zip(numbers(model(ids)), numbers(other(ids)), strict=True)
        same = all(torch.equal(ours, theirs) for ours, theirs in pairs)
    assert (weights_fingerprint(model) == weights_fingerprint(other)) == same


def numbers(outputs: Any) -> list[torch.Tensor]:
    """All that a model gives."""
    return [value for value in vars(outputs).values() if isinstance(value, torch.Tensor)]


@pytest.mark.parametrize(
    ("problem_type", "same"),
    [("single_label_classification", True), ("multi_label_classification", False), ("regression", False)],
)
def test_a_fingerprint_tells_what_becomes_of_the_logits(problem_type: str, same: bool) -> None:
    """Softmax, sigmoid, or the numbers themselves."""
    model = ConvBertForSequenceClassification(ConvBertConfig.from_dict(tiny_config().to_dict()))
    before = weights_fingerprint(model)
    model.config.problem_type = problem_type
    assert (weights_fingerprint(model) == before) == same


def test_the_fingerprint_of_a_usual_model_is_that_of_manifests_before() -> None:
    """Weights, activation and epsilon: what earlier versions wrote, which their outputs are compared with."""
    model = ConvBertForMultipleChoice(ConvBertConfig.from_dict(tiny_config().to_dict()))
    text = f"{fingerprint(model.state_dict())} {json.dumps(['gelu', 1e-12])}"
    assert weights_fingerprint(model) == hashlib.sha256(text.encode()).hexdigest()


def test_heads_whose_summaries_differ_share_their_encoder(tmp_path: Path) -> None:
    for name, kind in {"a": "last", "b": "first"}.items():
        save_checkpoint(tmp_path / name, architecture="ConvBertForMultipleChoice", summary_type=kind)
    (only,) = plan_passes(spec(head={name: str(tmp_path / name) for name in "ab"}))
    assert len({head.fingerprint for head in only.heads}) == 2


def test_a_plan_is_made_of_one_version(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here a new one comes between the tokenizer and the weights."""
    monkeypatch.setenv("CONVBERT_CACHE", str(tmp_path / "cache"))
    memory = fsspec.filesystem("memory")
    memory.put(f"{checkpoint}/", "/one-version/", recursive=True)
    new = save_checkpoint(tmp_path / "new", seed=5)
    plain: Callable[..., Any] = models.head_for

    def head_for(*args: Any, **kwargs: Any) -> Any:
        memory.put(f"{new}/", "/one-version/", recursive=True)
        return plain(*args, **kwargs)

    (expected,) = plan_passes(spec(model=str(checkpoint)))
    monkeypatch.setattr(models, "head_for", head_for)
    (only,) = plan_passes(spec(model="memory://one-version"))
    assert only.heads[0].fingerprint == expected.heads[0].fingerprint


def test_encoders_whose_names_lack_the_prefix_are_told_apart(checkpoint: Path, tmp_path: Path) -> None:
    folders = {"a": checkpoint, "b": save_checkpoint(tmp_path / "other", seed=5)}
    for name, folder in folders.items():
        plain = shutil.copytree(folder, tmp_path / name)
        weights = load_file(plain / "model.safetensors")
        save_file({key.removeprefix("convbert."): w for key, w in weights.items()}, plain / "model.safetensors")
    passes = plan_passes(spec(head={name: str(tmp_path / name) for name in folders}))
    assert [[head.name for head in p.heads] for p in passes] == [["a"], ["b"]]


def test_a_folder_without_weights_is_named(checkpoint: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoint, tmp_path / "copy")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"--head prediction: .*copy has no model\.safetensors"):
        plan_passes(spec(model=str(folder)))


def test_a_head_without_its_own_weights_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    transformers.ConvBertModel(tiny_config()).save_pretrained(tmp_path)
    shutil.copy(checkpoint / "config.json", tmp_path)
    shutil.copy(checkpoint / "vocab.txt", tmp_path)
    with pytest.raises(ModelError, match=r"no weights for classifier\.dense\.bias.* trained for this task"):
        plan_passes(spec(model=str(tmp_path)))


def test_weights_under_other_names_are_told(checkpoint: Path, tmp_path: Path) -> None:
    """As torch saves them of a model in ``torch.nn.DataParallel``."""
    folder = shutil.copytree(checkpoint, tmp_path / "copy")
    weights = load_file(folder / "model.safetensors")
    save_file({f"module.{name}": weight for name, weight in weights.items()}, folder / "model.safetensors")
    with pytest.raises(
        ModelError, match=r"no weights for classifier\..* … \(it holds module\.classifier\..* …, for which"
    ):
        plan_passes(spec(model=str(folder)))


@pytest.mark.parametrize(
    ("name", "message"), [("config.json", "has no config.json"), ("vocab.txt", "neither tokenizer.json nor vocab.txt")]
)
def test_missing_files_are_named(name: str, message: str, checkpoint: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoint, tmp_path / "copy")
    (folder / name).unlink()
    with pytest.raises(ModelError, match=message):
        plan_passes(spec(model=str(folder)))


def test_no_folder_is_named() -> None:
    with pytest.raises(ModelError, match="no checkpoint folder at /none"):
        plan_passes(spec(model="/none"))


def test_a_tokenizer_of_another_model_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoint, tmp_path / "copy")
    with (folder / "vocab.txt").open("a") as vocab:
        vocab.write("extra\n")
    with pytest.raises(ModelError, match="tokenizer and weights do not belong together"):
        plan_passes(spec(model=str(folder)))


@pytest.mark.parametrize(
    ("architecture", "settings"),
    [
        ("ConvBertForSequenceClassification", {"text_pair_column": "other"}),
        ("ConvBertForQuestionAnswering", {}),
        ("ConvBertForMultipleChoice", {}),
    ],
)
def test_two_texts_for_a_model_with_one_token_type_are_refused(
    architecture: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    save_checkpoint(tmp_path / "one", architecture=architecture, type_vocab_size=1)
    save_checkpoint(tmp_path / "two", architecture=architecture)
    with pytest.raises(
        ModelError, match=r"one tells no two texts apart \(type_vocab_size 1\), but reads \w+ and \w+: "
    ):
        plan_passes(spec(model=str(tmp_path / "one"), **settings))
    plan_passes(spec(model=str(tmp_path / "two"), **settings))
    if settings:
        plan_passes(spec(model=str(tmp_path / "one")))
