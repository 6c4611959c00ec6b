"""A checkpoint folder or URL in, its config and all its weights out, whichever of the formats they are in."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from convbert.checkpoints.formats import FORMATS, KERAS, SAFETENSORS, TORCH_BIN, Format
from convbert.checkpoints.keras_files import read_h5
from convbert.checkpoints.location import Checkpoint, located, path_beside
from convbert.checkpoints.tf1_files import derive_config, find_index, read_tf1
from convbert.checkpoints.torch_files import read_bin, read_safetensors
from convbert.config import CONFIG_NAME, ConvBertConfig
from convbert.errors import CheckpointError

READERS: dict[Format, Callable[[Path], dict[str, Tensor]]] = {
    SAFETENSORS: read_safetensors,
    TORCH_BIN: read_bin,
    KERAS: read_h5,
}


def read_weights(folder_or_url: str | Path | Checkpoint) -> dict[str, Tensor]:
    """All weights of a checkpoint folder, by the names and in the layouts of PyTorch.

    Reads safetensors, ``pytorch_model.bin`` and ``tf_model.h5``, each whole or in shards, or the original
    TF1 checkpoint.

    Raises:
        CheckpointError: no weights there, or files that cannot be read.
    """
    checkpoint = located(folder_or_url)
    folder = checkpoint.folder
    for form in FORMATS:
        if (folder / form.single_name).is_file():
            return READERS[form](folder / form.single_name)
        if (folder / form.index_name).is_file():
            weights: dict[str, Tensor] = {}
            for shard in _shards(folder / form.index_name):
                weights.update(READERS[form](shard))
            return weights
    tf1 = find_index(folder)
    if tf1 is not None:
        return read_tf1(tf1)
    present = ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"
    names = ", ".join(form.single_name for form in FORMATS)
    raise CheckpointError(
        f"{checkpoint.source} has no {names} or TF1 checkpoint (it holds {present}): give a complete checkpoint folder"
    )


def read_config(folder_or_url: str | Path | Checkpoint) -> ConvBertConfig:
    """The config of a checkpoint folder; that of a TF1 checkpoint without config.json follows from its weights.

    Raises:
        CheckpointError: no readable config.json, nor weights that tell it.
        ConfigError: its values describe no ConvBERT.
    """
    checkpoint = located(folder_or_url)
    tf1 = None if (checkpoint.folder / CONFIG_NAME).is_file() else find_index(checkpoint.folder)
    return ConvBertConfig.from_pretrained(checkpoint) if tf1 is None else derive_config(tf1)


def fingerprint(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes, in the order of the names: the same however they are filed."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _shards(index: Path) -> list[Path]:
    """The files that an index names, all of them there and beside it."""
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError) as error:
        raise CheckpointError(f"{index} is no index of weights ({error!r}): copy it again") from error
    if not names:
        raise CheckpointError(f"{index} names no weights: copy it again")
    return [path_beside(index, name) for name in names]
