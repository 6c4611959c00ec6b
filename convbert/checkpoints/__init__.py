"""A checkpoint folder or URL in, weights by name out, and back."""

from typing import TYPE_CHECKING

from convbert.checkpoints.arguments import check_saving, own_settings
from convbert.checkpoints.location import Checkpoint, local_folder, located
from convbert.on_demand import on_demand

if TYPE_CHECKING:
    from convbert.checkpoints.folder import fingerprint, read_config, read_weights
    from convbert.checkpoints.loading import LoadReport, fitted, load_into, without_mismatched
    from convbert.checkpoints.saving import save_weights

__all__ = [
    "Checkpoint",
    "LoadReport",
    "check_saving",
    "fingerprint",
    "fitted",
    "load_into",
    "local_folder",
    "located",
    "own_settings",
    "read_config",
    "read_weights",
    "save_weights",
    "without_mismatched",
]

if not TYPE_CHECKING:
    __getattr__, __dir__ = on_demand(__name__, __all__, modules=["folder", "loading", "saving"])
