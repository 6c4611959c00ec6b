"""A checkpoint folder or URL in, weights by name out, and back."""

from convbert.checkpoints.location import local_folder
from convbert.checkpoints.weights import LoadReport, fingerprint, load_into, read_weights, save_weights

__all__ = ["LoadReport", "fingerprint", "load_into", "local_folder", "read_weights", "save_weights"]
