"""What convbert raises: every error names the thing, its value and the remedy.

ConvBertError
├── ConfigError        a field, or a combination of fields, that no model can have   (also a ValueError)
├── CheckpointError    a folder that cannot be read as a ConvBERT checkpoint         (also an OSError)
│   └── WeightsError   weights that do not fit the model: of another shape or type, or tied
├── TokenizerError     a vocabulary or text that cannot be tokenised                 (also a ValueError)
└── InputError         ids, offsets or masks that the model cannot take              (also a ValueError)
"""


class ConvBertError(Exception):
    """Root of all errors raised on purpose by convbert."""


class ConfigError(ConvBertError, ValueError):
    """A configuration that no ConvBERT can have."""


class CheckpointError(ConvBertError, OSError):
    """A folder or file that cannot be read as a ConvBERT checkpoint."""


class WeightsError(CheckpointError):
    """Weights that do not fit the model they are loaded into."""


class TokenizerError(ConvBertError, ValueError):
    """A vocabulary, setting or text that cannot be tokenised."""


class InputError(ConvBertError, ValueError):
    """Input that the model cannot take: its shape, length or values."""
