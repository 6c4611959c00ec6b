"""A config in, ConvBERT models out: assembly of convbert.layers with Transformers-shaped forwards.

Shapes: B batch, L sequence length, H hidden_size, N attention heads of a mixed block.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import Self

from convbert import layers
from convbert.activations import ACTIVATIONS
from convbert.checkpoints import LoadReport, load_into, read_weights, save_weights
from convbert.config import ConvBertConfig
from convbert.errors import InputError
from convbert.outputs import EncoderOutput, LogitsOutput

logger = logging.getLogger(__name__)


class PreTrainedModel(nn.Module):
    """What all ConvBERT models share: initialisation, and reading and writing of checkpoint folders."""

    base_prefix: ClassVar[str] = "convbert."

    def __init__(self, config: ConvBertConfig) -> None:
        super().__init__()
        self.config = config

    @property
    def base_model(self) -> ConvBertModel:
        """The encoder: the model itself, or the one inside a task model."""
        encoder: ConvBertModel = getattr(self, self.base_prefix.rstrip("."), self)
        return encoder

    @classmethod
    def from_pretrained(
        cls, folder_or_url: str | Path, *, config: ConvBertConfig | None = None, dtype: torch.dtype | None = None
    ) -> Self:
        """The model with a checkpoint's weights, in evaluation mode.

        A base checkpoint loads into a task model and the other way round; weights that the checkpoint
        lacks keep their random initialisation and are named in a warning, as are those left over.

        Args:
            folder_or_url: checkpoint folder, local or at any fsspec URL.
            config: used in place of the folder's own.
            dtype: floating-point type of the weights; None keeps float32.

        Raises:
            CheckpointError: the folder holds no readable checkpoint.
            WeightsError: a weight has another shape than the config asks for.
        """
        model, report = cls.load(folder_or_url, config=config)
        if report.missing:
            logger.warning(
                "%s has no weights for %s: they are random until trained", folder_or_url, ", ".join(report.missing)
            )
        if report.unexpected:
            logger.warning(
                "%s holds weights that %s does not use: %s", folder_or_url, cls.__name__, ", ".join(report.unexpected)
            )
        return (model if dtype is None else model.to(dtype)).eval()

    @classmethod
    def load(cls, folder_or_url: str | Path, *, config: ConvBertConfig | None = None) -> tuple[Self, LoadReport]:
        """As ``from_pretrained``, with the names that did not meet in place of warnings."""
        model = cls(config or ConvBertConfig.from_pretrained(folder_or_url))
        report = load_into(model, read_weights(folder_or_url), base_prefix=cls.base_prefix, source=str(folder_or_url))
        return model.eval(), report

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json and model.safetensors, which Transformers reads, into a local folder."""
        self.config.extra["architectures"] = [type(self).__name__]
        self.config.save_pretrained(folder)
        save_weights(self, folder)

    def gradient_checkpointing_enable(self) -> None:
        """Recompute each block in the backward pass instead of keeping its activations."""
        self._set_gradient_checkpointing(True)

    def gradient_checkpointing_disable(self) -> None:
        """Keep activations for the backward pass, the default."""
        self._set_gradient_checkpointing(False)

    def _set_gradient_checkpointing(self, enabled: bool) -> None:
        for module in self.modules():
            if isinstance(module, layers.Encoder):
                module.gradient_checkpointing = enabled

    def _initialise(self) -> None:
        """Normal(0, initializer_range) for every matrix, zero for biases and padding, one for norms."""
        for module in self.modules():
            match module:
                case nn.Linear() | nn.Conv1d() | layers.GroupedLinear():
                    nn.init.normal_(module.weight, std=self.config.initializer_range)
                    if module.bias is not None:
                        nn.init.zeros_(module.bias)
                case nn.Embedding():
                    nn.init.normal_(module.weight, std=self.config.initializer_range)
                    if module.padding_idx is not None:
                        nn.init.zeros_(module.weight[module.padding_idx])


class ConvBertModel(PreTrainedModel):
    """The encoder without a head.

    Args:
        config: shape of the model; weights are randomly initialised.
    """

    def __init__(self, config: ConvBertConfig) -> None:
        super().__init__(config)
        self.embeddings = layers.Embeddings(
            vocab_size=config.vocab_size,
            max_position_embeddings=config.max_position_embeddings,
            type_vocab_size=config.type_vocab_size,
            embedding_width=config.embedding_size,
            padding_id=config.pad_token_id,
            layer_norm_eps=config.layer_norm_eps,
            dropout=config.hidden_dropout_prob,
        )
        if config.embedding_size != config.hidden_size:
            self.embeddings_project = nn.Linear(config.embedding_size, config.hidden_size)
        self.encoder = layers.Encoder([_encoder_layer(config) for _ in range(config.num_hidden_layers)])
        self._initialise()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> EncoderOutput:
        """Encode a padded batch.

        Args:
            input_ids: (B, L), or give ``inputs_embeds``.
            attention_mask: (B, L) or (B, L, L), 1 for tokens to attend to, 0 for padding; None is all ones.
            token_type_ids: (B, L); None is all zeros.
            position_ids: (B, L); None counts from 0.
            inputs_embeds: (B, L, embedding_size), in place of the word embeddings.
            output_hidden_states: return every layer's output.
            output_attentions: return every layer's attention probabilities.

        Raises:
            InputError: neither or both of ids and embeddings, or more than ``max_position_embeddings`` tokens.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise InputError("give either input_ids or inputs_embeds")
        words = self.embeddings.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        batch_size, n_tokens = words.shape[:2]
        if position_ids is None:
            if n_tokens > self.config.max_position_embeddings:
                raise InputError(
                    f"{n_tokens} tokens exceed max_position_embeddings ({self.config.max_position_embeddings}): "
                    "truncate the text or label it in windows"
                )
            position_ids = torch.arange(n_tokens, device=words.device)[None]
        if token_type_ids is None:
            token_type_ids = torch.zeros(batch_size, n_tokens, dtype=torch.long, device=words.device)
        hidden = self.embeddings(words, position_ids, token_type_ids)  # (B, L, E)
        if self.config.embedding_size != self.config.hidden_size:
            hidden = self.embeddings_project(hidden)  # (B, L, E) -> (B, L, H)
        last, hidden_states, attentions = self.encoder(
            hidden,
            _additive_mask(attention_mask, hidden.dtype),
            keep_hidden_states=output_hidden_states,
            keep_attentions=output_attentions,
        )
        return EncoderOutput(last_hidden_state=last, hidden_states=hidden_states, attentions=attentions)


class ConvBertForSequenceClassification(PreTrainedModel):
    """The encoder with a classification or regression head on its first token.

    Args:
        config: shape of the model and its labels; weights are randomly initialised.
    """

    def __init__(self, config: ConvBertConfig) -> None:
        super().__init__(config)
        self.convbert = ConvBertModel(config)
        self.classifier = layers.ClassificationHead(
            hidden_width=config.hidden_size,
            n_labels=config.num_labels,
            activation=ACTIVATIONS[config.hidden_act],
            dropout=_classifier_dropout(config),
        )
        self._initialise()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> LogitsOutput:
        """Logits (B, n_labels) of a padded batch; arguments as for ConvBertModel.

        Args:
            labels: (B,) class indices; (B,) or (B, n_labels) floats for regression; (B, n_labels) zeros
                and ones for several labels a text. The loss follows ``config.problem_type``, or where
                that is None the number of labels and the type of ``labels``.
        """
        encoded = self.convbert(
            input_ids,
            attention_mask,
            token_type_ids,
            position_ids,
            inputs_embeds,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
        )
        logits = self.classifier(encoded.last_hidden_state[:, 0])
        return LogitsOutput(
            logits=logits,
            loss=None if labels is None else _classification_loss(logits, labels, self.config.problem_type),
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )


def _encoder_layer(config: ConvBertConfig) -> layers.EncoderLayer:
    def output(in_width: int, n_groups: int) -> layers.ResidualOutput:
        return layers.ResidualOutput(
            in_width=in_width,
            hidden_width=config.hidden_size,
            n_groups=n_groups,
            layer_norm_eps=config.layer_norm_eps,
            dropout=config.hidden_dropout_prob,
        )

    return layers.EncoderLayer(
        attention=layers.Attention(
            mixed=layers.MixedSelfAttention(
                hidden_width=config.hidden_size,
                n_heads=config.n_mixed_heads,
                head_width=config.head_width,
                kernel_size=config.conv_kernel_size,
                attention_dropout=config.attention_probs_dropout_prob,
            ),
            output=output(config.hidden_size, n_groups=1),
        ),
        intermediate=layers.Intermediate(
            hidden_width=config.hidden_size,
            intermediate_width=config.intermediate_size,
            n_groups=config.num_groups,
            activation=ACTIVATIONS[config.hidden_act],
        ),
        output=output(config.intermediate_size, n_groups=config.num_groups),
    )


def _additive_mask(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """1/0 mask (B, L) or (B, L, L) -> 0 or the most negative number, (B, 1, 1 or L, L)."""
    if mask is None:
        return None
    if mask.dim() not in (2, 3):
        raise InputError(f"attention_mask has {mask.dim()} dimensions: give (B, L) or (B, L, L)")
    expanded = mask[:, None, None, :] if mask.dim() == 2 else mask[:, None]
    return (1 - expanded.to(dtype)) * torch.finfo(dtype).min


def _classifier_dropout(config: ConvBertConfig) -> float:
    return config.hidden_dropout_prob if config.classifier_dropout is None else config.classifier_dropout


def _classification_loss(logits: Tensor, labels: Tensor, problem_type: str | None) -> Tensor:
    n_labels = logits.shape[-1]
    if problem_type is None:
        if n_labels == 1:
            problem_type = "regression"
        elif labels.dtype in (torch.long, torch.int):
            problem_type = "single_label_classification"
        else:
            problem_type = "multi_label_classification"
    if problem_type == "regression":
        return F.mse_loss(logits.squeeze(), labels.squeeze()) if n_labels == 1 else F.mse_loss(logits, labels)
    if problem_type == "single_label_classification":
        return F.cross_entropy(logits.view(-1, n_labels), labels.view(-1))
    return F.binary_cross_entropy_with_logits(logits, labels)
