"""ConvBERT (Jiang et al. 2020) in PyTorch: config, tokenizer, models, and a packed inference engine."""

from typing import TYPE_CHECKING

from convbert.config import ConvBertConfig
from convbert.errors import CheckpointError, ConfigError, ConvBertError, InputError, TokenizerError, WeightsError
from convbert.on_demand import on_demand
from convbert.tokenization import BatchEncoding, ConvBertTokenizer, ConvBertTokenizerFast

if TYPE_CHECKING:
    from convbert.models import (
        ConvBertForMaskedLM,
        ConvBertForMultipleChoice,
        ConvBertForQuestionAnswering,
        ConvBertForSequenceClassification,
        ConvBertForTokenClassification,
        ConvBertModel,
    )

__all__ = [
    "BatchEncoding",
    "CheckpointError",
    "ConfigError",
    "ConvBertConfig",
    "ConvBertError",
    "ConvBertForMaskedLM",
    "ConvBertForMultipleChoice",
    "ConvBertForQuestionAnswering",
    "ConvBertForSequenceClassification",
    "ConvBertForTokenClassification",
    "ConvBertModel",
    "ConvBertTokenizer",
    "ConvBertTokenizerFast",
    "InputError",
    "TokenizerError",
    "WeightsError",
]

if not TYPE_CHECKING:
    __getattr__, __dir__ = on_demand(__name__, __all__, modules=["models"])
