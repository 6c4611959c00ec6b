"""A checkpoint folder or URL in, weights by name out, and back."""

from convbert.checkpoints.folder import fingerprint, read_config, read_weights
from convbert.checkpoints.loading import LoadReport, check_fit, load_into
from convbert.checkpoints.location import local_folder
from convbert.checkpoints.saving import save_weights

__all__ = [
    "LoadReport",
    "check_fit",
    "fingerprint",
    "load_into",
    "local_folder",
    "read_config",
    "read_weights",
    "save_weights",
]
