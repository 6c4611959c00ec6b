"""What each model's forward returns: Transformers' field names; a field that was not asked for is None."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass
class ModelOutput:
    """Fields that every model returns.

    Attributes:
        hidden_states: embedding output and each layer's output, n_layers + 1 tensors (B, L, H).
        attentions: each layer's attention probabilities, n_layers tensors (B, N, L, L).
    """

    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass
class EncoderOutput(ModelOutput):
    """Output of ConvBertModel.

    Attributes:
        last_hidden_state: (B, L, H).
    """

    last_hidden_state: Tensor = None  # type: ignore[assignment]  # always given


@dataclass
class LogitsOutput(ModelOutput):
    """Output of a task model.

    Attributes:
        logits: sequence classification (B, n_labels).
        loss: scalar, where labels were given.
    """

    logits: Tensor = None  # type: ignore[assignment]  # always given
    loss: Tensor | None = None
