"""Text in, token ids out: BERT's WordPiece, or whatever a tokenizer.json says, on the tokenizers library."""

from convbert.tokenization.batch_encoding import BatchEncoding
from convbert.tokenization.tokenizer import ConvBertTokenizer, ConvBertTokenizerFast, Encoded

__all__ = ["BatchEncoding", "ConvBertTokenizer", "ConvBertTokenizerFast", "Encoded"]
