"""A checkpoint's config.json in, the validated shape of a ConvBERT out, and back."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from convbert.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from convbert.checkpoints.location import Checkpoint

CONFIG_NAME = "config.json"
MODEL_TYPES = ("convbert", "conv_bert")  # old configs on the hub say conv_bert
PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")


@dataclass(kw_only=True)
class _Fields:
    """What is stored of a config; ConvBertConfig documents it."""

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
    eos_token_id: int | list[int] | None = 2
    embedding_size: int = 768
    head_ratio: int = 2
    conv_kernel_size: int = 9
    num_groups: int = 1
    classifier_dropout: float | None = None
    is_decoder: bool = False
    add_cross_attention: bool = False
    tie_word_embeddings: bool = True
    problem_type: str | None = None
    id2label: dict[int, str]
    extra: dict[str, Any] = field(default_factory=dict)


class ConvBertConfig(_Fields):
    """Shape, regularisation and labels of a ConvBERT; field names and defaults are Transformers'.

    Widths count features, sizes count entries. Labels may be given as any of ``num_labels``, ``id2label``
    and ``label2id``; two LABEL_0, LABEL_1 without any of them. Beside ``id2label``, names that only
    ``label2id`` has mean nothing.

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
        is_decoder, add_cross_attention: False, or refused: this package has the encoder only.
        tie_word_embeddings: the masked language model's output matrix is its word embedding table.
        problem_type: loss of sequence classification; None infers it from the labels.
        id2label: label names by class index; its length is the number of labels.
        extra: keys of a config.json that are no field here, written back unchanged. They can be read and
            set as attributes too: ``config.architectures``.

    Raises:
        ConfigError: a value or combination that no model can have, or labels that contradict each other.
    """

    model_type: ClassVar[str] = MODEL_TYPES[0]

    def __init__(
        self,
        *,
        num_labels: int | None = None,
        id2label: Mapping[Any, Any] | None = None,
        label2id: Mapping[Any, Any] | None = None,
        **fields: Any,
    ) -> None:
        super().__init__(id2label=_labels(num_labels, id2label, label2id), **fields)
        self._validate()

    if not TYPE_CHECKING:  # a type checker should still find a misspelt field

        def __getattr__(self, name: str) -> Any:
            """A key of ``extra``, asked for only where the class has no such attribute."""
            try:
                return self.__dict__["extra"][name]
            except KeyError:
                raise AttributeError(f"ConvBertConfig has no field {name!r}, and its config.json no such key") from None

        def __setattr__(self, name: str, value: Any) -> None:
            """Set a field; what is no field becomes a key of ``extra``, in a new dict: copies may share the old one."""
            if name in _known_keys() or name == "extra" or isinstance(getattr(type(self), name, None), property):
                super().__setattr__(name, value)
            else:
                super().__setattr__("extra", {**self.extra, name: value})

    @property
    def num_labels(self) -> int:
        """Number of classes of a classification head; another number gives the labels LABEL_0, LABEL_1, …"""
        return len(self.id2label)

    @num_labels.setter
    def num_labels(self, value: int) -> None:
        if value != self.num_labels:
            self.id2label = _labels(value, None, None)

    @property
    def label2id(self) -> dict[str, int]:
        """Class index by label name."""
        return {label: index for index, label in self.id2label.items()}

    @label2id.setter
    def label2id(self, value: Mapping[Any, Any]) -> None:
        self.id2label = _labels(None, None, value)

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
        for name, most in _COUNTS.items():
            fits = _is_whole(getattr(self, name), at_least=1) and getattr(self, name) <= most
            self._require(name, fits, f"must be a whole number of at least 1 and at most {most}")
            setattr(self, name, int(getattr(self, name)))  # NumPy's numbers are none in JSON
        for name in _NUMBERS:
            value = getattr(self, name)
            self._require(name, _is_number(value), "must be a number of at least 0")
            setattr(self, name, float(value))  # Transformers 5 takes no whole number for some of them
        for name in _RATES:
            value = getattr(self, name)
            fits = is_rate(value) or (name, value) == ("classifier_dropout", None)
            self._require(name, fits, "must lie between 0 and 1")
            setattr(self, name, value if value is None else float(value))
        for name in _TOKEN_IDS:
            value = getattr(self, name)
            ids = value if name == "eos_token_id" and isinstance(value, list) else [value]
            valid = all(index is None or _is_whole(index, at_least=0) for index in ids)
            self._require(name, valid, "must be a token id (0, 1, …) or None")
            plain = [index if index is None else int(index) for index in ids]
            setattr(self, name, plain if isinstance(value, list) else plain[0])
        self._validate_choices()
        self._validate_shape()

    def _validate_choices(self) -> None:
        from convbert.activations import ACTIVATIONS  # with torch: who is only handed a config needs none

        known = sorted(ACTIVATIONS)
        self._require("hidden_act", self.hidden_act in known, f"is unknown: choose one of {', '.join(known)}")
        problems = (None, *PROBLEM_TYPES)
        self._require("problem_type", self.problem_type in problems, f"is unknown: choose one of {problems}")
        self._require("tie_word_embeddings", isinstance(self.tie_word_embeddings, bool), "must be True or False")
        for name, supported in _SUPPORTED.items():
            value = getattr(self, name, supported)
            same = type(value) is type(supported) and value == supported
            self._require(name, same, f"is not supported by this package: it must be {supported!r}")
        clashes = sorted(self.extra.keys() & _known_keys())
        if clashes:
            raise ConfigError(f"extra holds {clashes[0]!r}, which is a field: give it as an argument of its own")

    def _validate_shape(self) -> None:
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
            remedy = f"is no multiple of num_groups ({self.num_groups}): change one of them"
            self._require(name, getattr(self, name) % self.num_groups == 0, remedy)
        if self.pad_token_id is not None and self.pad_token_id >= self.vocab_size:
            raise ConfigError(
                f"pad_token_id ({self.pad_token_id}) lies outside the vocabulary: "
                f"choose one below vocab_size ({self.vocab_size})"
            )
        if self.problem_type == "single_label_classification" and self.num_labels == 1:
            raise ConfigError(
                f"problem_type ({self.problem_type!r}) needs at least two labels and has one: "
                "add a label, or choose 'regression'"
            )

    def _require(self, name: str, holds: bool, remedy: str) -> None:
        if not holds:
            raise ConfigError(f"{name} ({getattr(self, name)!r}) {remedy}")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], **changes: Any) -> ConvBertConfig:
        """The config that a parsed config.json describes.

        Args:
            values: the JSON object; ``num_labels`` alone, as some checkpoints have it, names no labels.
            changes: fields in place of those in ``values``. Changed labels replace all labels there.

        Raises:
            ConfigError: another model type, a value that no model can have, or a change of what is no field.
        """
        unknown = sorted(changes.keys() - _known_keys())
        if unknown:
            raise ConfigError(f"{unknown[0]} ({changes[unknown[0]]!r}) is no field of ConvBertConfig: check its name")
        if changes.keys() & _LABEL_KEYS:
            values = {key: value for key, value in values.items() if key not in _LABEL_KEYS}
        values = {**values, **changes}
        model_type = values.pop("model_type", None) or cls.model_type
        if model_type not in MODEL_TYPES:
            raise ConfigError(f"model_type ({model_type!r}) is no ConvBERT: this package reads {cls.model_type!r} only")
        extra = {key: values.pop(key) for key in values.keys() - _known_keys()}
        return cls(**values, extra=extra)

    def to_dict(self) -> dict[str, Any]:
        """What config.json holds: every field, the labels in both directions, and the kept extra keys."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "extra"}
        own["id2label"] = {str(index): label for index, label in self.id2label.items()}
        return {**self.extra, "model_type": self.model_type, **own, "label2id": self.label2id}

    @classmethod
    def from_pretrained(cls, folder_or_url: str | Path | Checkpoint, **changes: Any) -> ConvBertConfig:
        """The config of a checkpoint folder, local or at any fsspec URL.

        Args:
            changes: fields in place of the checkpoint's, such as ``num_labels``. Arguments of Transformers that change
                nothing here, such as ``local_files_only``, are taken too.

        Raises:
            CheckpointError: no readable config.json there.
            ConfigError: its values describe no ConvBERT.
            InputError: an argument of Transformers asks for what is done in another way here.
        """
        from convbert.checkpoints import located, own_settings

        changes = own_settings(changes, folder_or_url)
        checkpoint = located(folder_or_url)
        path, source = checkpoint.folder / CONFIG_NAME, checkpoint.source
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise CheckpointError(f"{source} has no {CONFIG_NAME}: is it a checkpoint folder?") from error
        except (ValueError, OSError, RecursionError) as error:
            raise CheckpointError(f"{CONFIG_NAME} of {source} cannot be read: {error}") from error
        if not isinstance(values, dict):
            raise CheckpointError(f"{CONFIG_NAME} of {source} must hold a JSON object")
        try:
            return cls.from_dict(values, **changes)
        except (ConfigError, RecursionError) as error:  # the latter from quoting a value nested nearly too deep to read
            raise ConfigError(f"{CONFIG_NAME} of {source}: {error}") from error

    def save_pretrained(self, folder: str | Path, **others: Any) -> None:
        """Write config.json into a local folder, which is made where it is missing.

        Args:
            folder: where to.
            others: arguments of Transformers that change nothing here: ``push_to_hub=False``.

        Raises:
            CheckpointError: a URL in place of a folder.
            InputError: an argument of Transformers asks for what is done in another way here.
        """
        from convbert.checkpoints import check_saving
        from convbert.checkpoints.location import swapped_in

        check_saving(others)
        text = json.dumps(self.to_dict(), indent=2, sort_keys=True, ensure_ascii=False)
        with swapped_in(folder) as new:
            (new / CONFIG_NAME).write_text(text + "\n", encoding="utf-8")


_LABEL_KEYS = {"num_labels", "id2label", "label2id"}
MOST_LABELS = 1_000_000
_MOST = 2**31 - 1  # products of two sizes are sizes of tensors, which torch counts in 64 bits
_COUNTS = {
    "vocab_size": _MOST,
    "hidden_size": _MOST,
    "num_hidden_layers": 256,  # each costs time and memory before it has a weight
    "num_attention_heads": _MOST,
    "intermediate_size": _MOST,
    "max_position_embeddings": _MOST,
    "type_vocab_size": _MOST,
    "embedding_size": _MOST,
    "head_ratio": _MOST,
    "conv_kernel_size": _MOST,
    "num_groups": _MOST,
}
"""The largest value of each field that counts something."""
_NUMBERS = ("initializer_range", "layer_norm_eps")
_RATES = ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout")
_TOKEN_IDS = ("pad_token_id", "bos_token_id", "eos_token_id")
_SUPPORTED = {  # what Transformers' configs may ask for, and the one value that means an encoder like this one
    "is_decoder": False,
    "add_cross_attention": False,
    "is_encoder_decoder": False,
    "position_embedding_type": "absolute",
    "pruned_heads": {},
}


def _known_keys() -> set[str]:
    return {f.name for f in fields(ConvBertConfig)} - {"extra"} | _LABEL_KEYS


def _is_whole(value: object, *, at_least: int) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= at_least


def _is_number(value: object) -> bool:
    try:
        return isinstance(value, Real) and not isinstance(value, bool) and 0 <= float(value) < math.inf
    except OverflowError:  # a whole number beyond all floats
        return False


def is_rate(value: Any) -> bool:
    """Whether it is a number in [0, 1], as dropouts are."""
    return _is_number(value) and value <= 1


def _labels(
    num_labels: int | None, id2label: Mapping[Any, Any] | None, label2id: Mapping[Any, Any] | None
) -> dict[int, str]:
    """Label names by class index, from any of the three ways to give them."""
    for name, mapping in (("id2label", id2label), ("label2id", label2id)):
        if not isinstance(mapping, (Mapping, type(None))):
            raise ConfigError(f"{name} ({mapping!r}) must map class indices and labels to each other")
    if id2label is not None:
        labels = {_class_index(index, "id2label"): _label(label) for index, label in id2label.items()}
    elif label2id is not None:
        labels = {_class_index(index, "label2id"): _label(label) for label, index in label2id.items()}
    else:
        n_labels = 2 if num_labels is None else num_labels
        if not _is_whole(n_labels, at_least=1) or n_labels > MOST_LABELS:
            raise ConfigError(
                f"num_labels ({n_labels!r}) must be a whole number of at least 1 and at most {MOST_LABELS}"
            )
        return {index: f"LABEL_{index}" for index in range(int(n_labels))}
    if not labels or sorted(labels) != list(range(len(labels))):
        raise ConfigError(f"id2label must number its labels 0, 1, 2, … without holes; it has {sorted(labels)}")
    if num_labels not in (None, len(labels)):
        raise ConfigError(
            f"num_labels ({num_labels!r}) contradicts the {len(labels)} labels of id2label: leave one out"
        )
    if label2id:
        _check_inverse(labels, label2id)
    return dict(sorted(labels.items()))


def _label(value: object) -> str:
    label = str(value)
    try:
        label.encode("utf-8")
    except UnicodeEncodeError as error:  # JSON can escape half of a surrogate pair
        raise ConfigError(f"the label {label!r} holds half of a surrogate pair: write whole characters") from error
    return label


def _check_inverse(labels: dict[int, str], label2id: Mapping[Any, Any]) -> None:
    """See that names which both maps hold stand for the same classes.

    Beside a new id2label, Transformers leaves the label2id of before in a config.json: its other names mean nothing.
    """
    indices = {str(label): _class_index(index, "label2id") for label, index in label2id.items()}
    wrong = [label for label in labels.values() if label in indices and labels.get(indices[label]) != label]
    if wrong:
        raise ConfigError(
            f"label2id ({dict(label2id)}) contradicts id2label ({labels}) at {min(wrong)!r}: leave one of them out"
        )


def _class_index(value: object, name: str) -> int:
    if isinstance(value, str) and value.isdecimal() and len(value) < 20:  # JSON has no other keys
        return int(value)
    if isinstance(value, Integral) and not isinstance(value, bool):
        return int(value)
    raise ConfigError(f"{name} holds the class index {value!r}: it must be a whole number")
