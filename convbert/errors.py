"""What convbert raises: every error names the thing, its value and the remedy.

ConvBertError
├── ConfigError        a field, or a combination of fields, that no model can have   (also a ValueError)
├── CheckpointError    a folder that cannot be read as a ConvBERT checkpoint         (also an OSError)
│   └── WeightsError   weights that do not fit the model: of another shape or type, or tied
├── TokenizerError     a vocabulary or text that cannot be tokenised                 (also a ValueError)
└── InputError         ids, offsets or masks that the model cannot take              (also a ValueError)
"""

LONGEST_MESSAGE = 1000


def one_line(message: str) -> str:
    """A message as one printable line, whatever names and values of a hostile file it quotes.

    Characters that a terminal would obey or cannot show become escapes; of a message beyond ``LONGEST_MESSAGE``
    characters the middle goes, for it begins with the thing and ends with the remedy.
    """
    if len(message) > LONGEST_MESSAGE:
        half = LONGEST_MESSAGE // 2
        message = f"{message[:half]} … {message[-half:]}"
    return printable(message)


def printable(text: str) -> str:
    """A text of one line, with escapes for what a terminal would obey or cannot show."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


class ConvBertError(Exception):
    """Root of all errors raised on purpose by convbert.

    Args:
        message: given as ``one_line`` makes it.
    """

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


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
