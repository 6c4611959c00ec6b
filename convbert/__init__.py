"""ConvBERT (Jiang et al. 2020) in PyTorch: config, tokenizer, models, and a packed inference engine."""

from convbert.config import ConvBertConfig
from convbert.errors import CheckpointError, ConfigError, ConvBertError, InputError, TokenizerError, WeightsError
from convbert.models import (
    ConvBertForMaskedLM,
    ConvBertForMultipleChoice,
    ConvBertForQuestionAnswering,
    ConvBertForSequenceClassification,
    ConvBertForTokenClassification,
    ConvBertModel,
)
from convbert.tokenization import BatchEncoding, ConvBertTokenizer, ConvBertTokenizerFast

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
