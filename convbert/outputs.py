"""What each model's forward returns: Transformers' field names in Transformers' order.

A field that was not asked for is None. Shapes: B batch, C choices, L sequence length, H hidden_size,
N attention heads of a mixed block.
"""

from __future__ import annotations

from collections.abc import ItemsView, KeysView, ValuesView
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor
from torch.utils._pytree import register_dataclass


class ModelOutput:
    """Fields by name or by place: ``out.logits``, ``out["logits"]``; ``out[0]`` counts the fields that are given.

    As a mapping it has the fields that are given: ``"loss" in out``, ``out.keys()``, ``dict(out)``. Unpacked it gives
    them in their order: ``loss, logits = out``.
    """

    def to_tuple(self) -> tuple[Any, ...]:
        """The fields that are given, in their order: Transformers' ``return_dict=False``."""
        return tuple(self._given().values())

    def keys(self) -> KeysView[str]:
        """Names of the fields that are given."""
        return self._given().keys()

    def values(self) -> ValuesView[Any]:
        """The fields that are given."""
        return self._given().values()

    def items(self) -> ItemsView[str, Any]:
        """Names and fields that are given."""
        return self._given().items()

    def get(self, name: str, default: Any = None) -> Any:
        """The field of that name, or ``default`` where it is not given."""
        return self._given().get(name, default)

    def __len__(self) -> int:
        """How many fields are given."""
        return len(self._given())

    def __contains__(self, name: object) -> bool:
        return name in self._given()

    def __getitem__(self, key: int | slice | str) -> Any:
        return self._all()[key] if isinstance(key, str) else self.to_tuple()[key]

    def _given(self) -> dict[str, Any]:
        return {name: value for name, value in self._all().items() if value is not None}

    def _all(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]  # below


@dataclass(kw_only=True)
class EncoderOutput(ModelOutput):
    """Output of ConvBertModel.

    Attributes:
        last_hidden_state: (B, L, H).
        hidden_states: embedding output and each layer's output, n_layers + 1 tensors (B, L, H).
        attentions: each layer's attention probabilities, n_layers tensors (B, N, L, L).
    """

    last_hidden_state: Tensor
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass(kw_only=True)
class LogitsOutput(ModelOutput):
    """Output of a task model other than question answering.

    Attributes:
        loss: scalar, where labels were given.
        logits: (B, n_labels) of a text, (B, L, n_labels) of tokens, (B, L, vocab_size) of a masked
            language model, (B, C) of choices.
        hidden_states: embedding output and each layer's output, n_layers + 1 tensors (B, L, H);
            (B·C, L, H) of choices.
        attentions: each layer's attention probabilities, n_layers tensors (B, N, L, L); (B·C, N, L, L)
            of choices.
    """

    loss: Tensor | None = None
    logits: Tensor
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass(kw_only=True)
class SpanOutput(ModelOutput):
    """Output of question answering.

    Attributes:
        loss: scalar, where positions were given.
        start_logits: (B, L), how well each token begins the answer.
        end_logits: (B, L), how well each token ends it.
        hidden_states: embedding output and each layer's output, n_layers + 1 tensors (B, L, H).
        attentions: each layer's attention probabilities, n_layers tensors (B, N, L, L).
    """

    loss: Tensor | None = None
    start_logits: Tensor
    end_logits: Tensor
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


for _output in (EncoderOutput, LogitsOutput, SpanOutput):  # torch.export and torch.func look into what is known to them
    register_dataclass(_output, serialized_type_name=f"{__name__}.{_output.__name__}")
