"""What a job raises: one line that names the thing and says what to do.

PipelineError
├── SpecError       a flag or a combination of flags that no job can have
├── SourceError     an input that is not there, cannot be read, or lacks a column
├── OutputError     an output that cannot be written, or belongs to another job
├── StoreError      a store that stopped answering while a file was read
├── ModelError      a checkpoint that cannot label
├── DeviceError     a device, or memory, that only a new process can use again
└── RunError        a run that did not bring every record out
"""

from convbert.errors import one_line

LOST_REST = "the rest of the shard cannot be decompressed"
"""How the error begins that stands for all records behind the place where a compressed shard is damaged."""


class PipelineError(Exception):
    """Root of all errors raised on purpose by pipelines.

    Args:
        message: given as ``one_line`` makes it.
    """

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class SpecError(PipelineError):
    """A flag, or a combination of flags, that no job can have."""


class SourceError(PipelineError):
    """An input that is not there, cannot be read, or lacks a column."""


class OutputError(PipelineError):
    """An output that cannot be written, or that another job has made."""


class StoreError(PipelineError):
    """A store that refused or stopped answering while a file was read: no OSError, for the file is not damaged."""


class ModelError(PipelineError):
    """A checkpoint that cannot label."""


class DeviceError(PipelineError):
    """A device, or memory, that only a new process can use again."""


class RunError(PipelineError):
    """A run that did not bring every record out, or failed too many of them."""
