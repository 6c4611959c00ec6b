"""Safetensors files in, weights in a model out, with what was missing or left over; and back."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from convbert.checkpoints.location import local_folder
from convbert.errors import CheckpointError, WeightsError

SINGLE_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"


class LoadReport(NamedTuple):
    """Names that did not meet: ``missing`` keep their initialisation, ``unexpected`` are not used."""

    missing: list[str]
    unexpected: list[str]


def read_weights(folder_or_url: str | Path) -> dict[str, Tensor]:
    """All weights of a checkpoint folder by their names there.

    Reads model.safetensors, or the shards that model.safetensors.index.json names.

    Raises:
        CheckpointError: no weights there, or files that cannot be read.
    """
    folder = local_folder(folder_or_url)
    if (folder / SINGLE_NAME).is_file():
        return _read_file(folder / SINGLE_NAME)
    if (folder / INDEX_NAME).is_file():
        weights: dict[str, Tensor] = {}
        for shard in _shard_names(folder / INDEX_NAME):
            weights.update(_read_file(folder / shard))
        return weights
    present = ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"
    raise CheckpointError(
        f"{folder_or_url} has no {SINGLE_NAME} (it holds {present}): give a complete checkpoint folder"
    )


def load_into(model: nn.Module, weights: Mapping[str, Tensor], *, base_prefix: str, source: str) -> LoadReport:
    """Copy weights into a model, between base and task checkpoints too.

    Names of the base model carry ``base_prefix`` inside task models; it is added or stripped where the
    checkpoint and the model differ in that. Floating-point weights take the model's dtype.

    Raises:
        WeightsError: a weight of another shape than the model's, named with both shapes.
    """
    own = model.state_dict()
    found = _with_prefix_of(own, weights, base_prefix)
    for name in own.keys() & found.keys():
        if own[name].shape != found[name].shape:
            raise WeightsError(
                f"{name} of {source} has shape {tuple(found[name].shape)}, but the config asks for "
                f"{tuple(own[name].shape)}: config.json and weights do not belong together"
            )
    model.load_state_dict({name: found[name] for name in own.keys() & found.keys()}, strict=False)
    return LoadReport(sorted(own.keys() - found.keys()), sorted(found.keys() - own.keys()))


def save_weights(model: nn.Module, folder: str | Path) -> None:
    """Write model.safetensors with the metadata that Transformers expects."""
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, Path(folder) / SINGLE_NAME, metadata={"format": "pt"})


def fingerprint(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes, in the order of the names: the same however they are filed."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _read_file(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path.name} is missing from {path.parent}: copy the whole checkpoint") from error
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}): copy it again") from error


def _shard_names(index: Path) -> list[str]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise CheckpointError(f"{index} is no index of weights ({error}): copy it again") from error
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise CheckpointError(f"{index} names {name!r}, which lies outside its folder: refused")
    return names


def _with_prefix_of(own: Mapping[str, Tensor], weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    wants = any(name.startswith(prefix) for name in own)
    has = any(name.startswith(prefix) for name in weights)
    if wants and not has:
        return {prefix + name: tensor for name, tensor in weights.items()}
    if has and not wants:
        return {name.removeprefix(prefix): tensor for name, tensor in weights.items()}
    return dict(weights)
