"""Weights of Transformers' TensorFlow classes (TFConvBert…) in, this package's names and layouts out.

How Keras files a ``tf_model.h5`` stands in docs/checkpoints.md.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from convbert.checkpoints.names import KERAS_RULES, renamed
from convbert.errors import CheckpointError


def read_h5(path: Path) -> dict[str, Tensor]:
    """The weights of a ``tf_model.h5``, or of one shard of it.

    Raises:
        CheckpointError: h5py is not installed, or the file is damaged or points to other files.
    """
    try:
        import h5py  # type: ignore[import-untyped, import-not-found, unused-ignore]
    except ImportError as error:
        raise CheckpointError(f"{path} is in TensorFlow's format, which needs h5py: pip install h5py") from error
    weights: list[tuple[str, Tensor]] = []
    n_file, n_bytes = path.stat().st_size, 0
    try:
        with h5py.File(path, "r") as file:
            # Keras writes <layer>/<model>/<layer>/…; Transformers' own shards begin with the second <layer>.
            n_scopes = 2 if "keras_version" in file.attrs else 0

            def visit(name: str, node: Any) -> None:  # follows no link into another file, and each object once
                nonlocal n_bytes
                if isinstance(node, h5py.Dataset):
                    _check_stored(node, path)
                    n_bytes += node.nbytes
                    if n_bytes > n_file:
                        raise CheckpointError(
                            f"{path} is refused: its datasets lie over each other. Save the model again"
                        )
                    weights.append(("/".join(name.split("/")[n_scopes:]), torch.from_numpy(node[()])))

            file.visititems(visit)
    except CheckpointError:
        raise
    except Exception as error:  # h5py raises whatever the HDF5 library meets in damaged bytes
        raise CheckpointError(f"{path} cannot be read ({error}): copy it again") from error
    return from_keras(weights, source=path)


def from_keras(weights: Iterable[tuple[str, Tensor]], *, source: object) -> dict[str, Tensor]:
    """Keras' variables, named ``convbert/encoder/layer_._0/…/kernel:0``, as PyTorch's weights."""
    dotted = ((name.removesuffix(":0").replace("_._", ".").replace("/", "."), tensor) for name, tensor in weights)
    return renamed(dotted, KERAS_RULES, source=source)


def _check_stored(dataset: Any, path: Path) -> None:
    """See that all bytes of a dataset lie in its file, as they are."""
    if dataset.external or dataset.is_virtual:
        raise CheckpointError(f"{dataset.name} of {path} lies in another file: refused")
    if dataset.id.get_create_plist().get_nfilters():
        raise CheckpointError(f"{dataset.name} of {path} is compressed, which Keras does not do: save the model again")
    if dataset.nbytes > dataset.id.get_storage_size():
        raise CheckpointError(f"{dataset.name} of {path} was never written: save the model again")
