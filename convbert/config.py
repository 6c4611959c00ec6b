"""A checkpoint's config.json in, the validated shape of a ConvBERT out, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from convbert.activations import ACTIVATIONS
from convbert.errors import CheckpointError, ConfigError

CONFIG_NAME = "config.json"
MODEL_TYPES = ("convbert", "conv_bert")  # old configs on the hub say conv_bert
PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")


@dataclass(kw_only=True)
class ConvBertConfig:
    """Shape, regularisation and labels of a ConvBERT; field names and defaults are Transformers'.

    Widths count features, sizes count entries. Keys of a config.json that are no field here are kept
    in ``extra`` and written back unchanged.

    Attributes:
        vocab_size: entries of the word embedding table.
        hidden_size: width of the encoder.
        num_hidden_layers: number of encoder layers.
        num_attention_heads: heads before the reduction by ``head_ratio``.
        intermediate_size: width inside the feed-forward block.
        hidden_act: activation of the feed-forward block and of the classification head.
        hidden_dropout_prob: dropout of embeddings and block outputs, in [0, 1].
        attention_probs_dropout_prob: dropout of attention probabilities, in [0, 1].
        max_position_embeddings: longest sequence, in tokens.
        type_vocab_size: number of token types (segments).
        initializer_range: standard deviation of the normal initialisation.
        layer_norm_eps: epsilon of every layer normalisation.
        pad_token_id, bos_token_id, eos_token_id: ids of special tokens; None where there is none.
        embedding_size: width of the embeddings; projected to ``hidden_size`` where they differ.
        head_ratio: γ of the paper, section 4.2: half of the block's width goes to attention with
            ``num_attention_heads // head_ratio`` heads, the other half to as many convolution heads.
        conv_kernel_size: taps of the span-based dynamic convolution, odd.
        num_groups: groups of the grouped feed-forward products, paper section 4.2; 1 means dense.
        classifier_dropout: dropout of task heads; None means ``hidden_dropout_prob``.
        problem_type: loss of sequence classification; None infers it from the labels.
        id2label: label names by class index; its length is the number of labels.

    Raises:
        ConfigError: a value or combination that no model can have.
    """

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    pad_token_id: int | None = 1
    bos_token_id: int | None = 0
    eos_token_id: int | None = 2
    embedding_size: int = 768
    head_ratio: int = 2
    conv_kernel_size: int = 9
    num_groups: int = 1
    classifier_dropout: float | None = None
    problem_type: str | None = None
    id2label: dict[int, str] = field(default_factory=lambda: _default_labels(2))
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.id2label = {int(index): str(label) for index, label in self.id2label.items()}
        self._validate()

    @property
    def num_labels(self) -> int:
        """Number of classes of a classification head."""
        return len(self.id2label)

    @property
    def label2id(self) -> dict[str, int]:
        """Class index by label name."""
        return {label: index for index, label in self.id2label.items()}

    @property
    def n_mixed_heads(self) -> int:
        """N: attention heads of a mixed block, and as many convolution heads."""
        return max(1, self.num_attention_heads // self.head_ratio)

    @property
    def head_width(self) -> int:
        """d: features of one head of a mixed block."""
        return self.hidden_size // self.n_mixed_heads // 2

    @property
    def attention_width(self) -> int:
        """A = N·d: features of all attention heads together, half of ``hidden_size``."""
        return self.n_mixed_heads * self.head_width

    def _validate(self) -> None:
        for name in _POSITIVE:
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(f"{name} ({value!r}) must be a whole number of at least 1")
        for name in _PROBABILITIES:
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ConfigError(f"{name} ({value!r}) must lie between 0 and 1")
        if self.hidden_act not in ACTIVATIONS:
            raise ConfigError(
                f"hidden_act ({self.hidden_act!r}) is unknown: choose one of {', '.join(sorted(ACTIVATIONS))}"
            )
        if self.conv_kernel_size % 2 == 0:
            raise ConfigError(
                f"conv_kernel_size ({self.conv_kernel_size}) must be odd, so that a span has a centre: "
                f"choose {self.conv_kernel_size - 1} or {self.conv_kernel_size + 1}"
            )
        if self.hidden_size % (2 * self.n_mixed_heads):
            raise ConfigError(
                f"hidden_size ({self.hidden_size}) cannot be shared between {self.n_mixed_heads} attention and "
                f"{self.n_mixed_heads} convolution heads: choose a multiple of {2 * self.n_mixed_heads}, "
                f"or change num_attention_heads ({self.num_attention_heads}) or head_ratio ({self.head_ratio})"
            )
        for name in ("hidden_size", "intermediate_size"):
            if getattr(self, name) % self.num_groups:
                raise ConfigError(f"{name} ({getattr(self, name)}) is no multiple of num_groups ({self.num_groups})")
        if self.pad_token_id is not None and not 0 <= self.pad_token_id < self.vocab_size:
            raise ConfigError(f"pad_token_id ({self.pad_token_id}) lies outside the vocabulary of {self.vocab_size}")
        if self.problem_type not in (None, *PROBLEM_TYPES):
            raise ConfigError(
                f"problem_type ({self.problem_type!r}) is unknown: choose one of {', '.join(PROBLEM_TYPES)}"
            )
        if sorted(self.id2label) != list(range(len(self.id2label))):
            raise ConfigError(
                f"id2label must number its labels 0, 1, 2, … without holes; it has {sorted(self.id2label)}"
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ConvBertConfig:
        """The config that a parsed config.json describes.

        ``num_labels`` alone, as some checkpoints have it, gives the labels LABEL_0, LABEL_1, …

        Raises:
            ConfigError: another model type, or a value that no model can have.
        """
        values = dict(values)
        model_type = values.pop("model_type", MODEL_TYPES[0])
        if model_type not in MODEL_TYPES:
            raise ConfigError(f"model_type ({model_type!r}) is no ConvBERT: this package reads {MODEL_TYPES[0]!r} only")
        n_labels = values.pop("num_labels", None)
        if not values.get("id2label"):
            values.pop("id2label", None)
            if n_labels is not None:
                values["id2label"] = _default_labels(n_labels)
        values.pop("label2id", None)  # follows from id2label
        known = {f.name for f in fields(cls)} - {"extra"}
        return cls(
            **{key: value for key, value in values.items() if key in known},
            extra={key: value for key, value in values.items() if key not in known},
        )

    def to_dict(self) -> dict[str, Any]:
        """What config.json holds: every field, the labels in both directions, and the kept extra keys."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "extra"}
        own["id2label"] = {str(index): label for index, label in self.id2label.items()}
        return {**self.extra, "model_type": MODEL_TYPES[0], **own, "label2id": self.label2id}

    @classmethod
    def from_pretrained(cls, folder_or_url: str | Path) -> ConvBertConfig:
        """The config of a checkpoint folder, local or at any fsspec URL.

        Raises:
            CheckpointError: no readable config.json there.
            ConfigError: its values describe no ConvBERT.
        """
        from convbert.checkpoints.location import local_folder

        path = local_folder(folder_or_url) / CONFIG_NAME
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise CheckpointError(f"{folder_or_url} has no {CONFIG_NAME}: is it a checkpoint folder?") from error
        except (ValueError, OSError) as error:
            raise CheckpointError(f"{CONFIG_NAME} of {folder_or_url} cannot be read: {error}") from error
        if not isinstance(values, dict):
            raise CheckpointError(f"{CONFIG_NAME} of {folder_or_url} must hold a JSON object")
        return cls.from_dict(values)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json into a local folder, which is made where it is missing."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.to_dict(), indent=2, sort_keys=True, ensure_ascii=False)
        (Path(folder) / CONFIG_NAME).write_text(text + "\n", encoding="utf-8")


_POSITIVE = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
    "type_vocab_size",
    "embedding_size",
    "head_ratio",
    "conv_kernel_size",
    "num_groups",
)
_PROBABILITIES = ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout")


def _default_labels(n_labels: int) -> dict[int, str]:
    return {index: f"LABEL_{index}" for index in range(n_labels)}
