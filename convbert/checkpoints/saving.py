"""A model in, a folder of safetensors out that Transformers reads, whole or in shards."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor, nn

from convbert.checkpoints.formats import SAFETENSORS
from convbert.checkpoints.loading import tied_names
from convbert.checkpoints.location import folder_to_write
from convbert.config import CONFIG_NAME, ConvBertConfig
from convbert.errors import CheckpointError

SHARD_PATTERN = f"model-{5 * '[0-9]'}-of-{5 * '[0-9]'}.safetensors"


def save_weights(model: nn.Module, folder: str | Path, *, config: ConvBertConfig, max_shard_bytes: int | None) -> None:
    """Write a model's weights, each tied one under its first name only, and its config.

    Safetensors and config that lie in the folder are replaced only when all new files are written; whenever it
    stops, the folder never holds a mix of old and new that can be read.

    Args:
        config: written beside the weights, in the same way.
        max_shard_bytes: most bytes of weights a file; a larger tensor has a file for itself. None: one file.

    Raises:
        CheckpointError: a URL in place of a folder, or ``max_shard_bytes`` below 1.
    """
    if max_shard_bytes is not None and max_shard_bytes < 1:
        raise CheckpointError(f"max_shard_bytes ({max_shard_bytes}) must be at least 1")
    ties = tied_names(model)
    weights = {
        name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items() if name not in ties
    }
    shards = _shards(weights, max_shard_bytes)
    names = [SAFETENSORS.single_name]
    if len(shards) > 1:
        names = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    folder = folder_to_write(folder)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as scratch:
        for name, shard in zip(names, shards, strict=True):
            _save(shard, Path(scratch) / name)
        if len(shards) > 1:
            (Path(scratch) / SAFETENSORS.index_name).write_text(_index(names, shards), encoding="utf-8")
            names.append(SAFETENSORS.index_name)  # last: without it the shards are no checkpoint
        config.save_pretrained(scratch)
        names.append(CONFIG_NAME)  # put last, and removed first: it stands beside no other weights
        own_names = (CONFIG_NAME, SAFETENSORS.single_name, SAFETENSORS.index_name)
        for path in [*(folder / name for name in own_names), *folder.glob(SHARD_PATTERN)]:
            if path.name != names[0]:  # a single file is replaced in one stroke
                path.unlink(missing_ok=True)
        for name in names:
            (Path(scratch) / name).replace(folder / name)


def _save(shard: dict[str, Tensor], path: Path) -> None:
    """Write one file, which who may read other new files may read: safetensors from 0.8 on let its owner alone."""
    path.touch()
    mode = path.stat().st_mode
    save_file(shard, path, metadata={"format": "pt"})
    if path.stat().st_mode != mode:  # a mount that has but one mode may refuse to change it
        path.chmod(mode)


def _shards(weights: Mapping[str, Tensor], max_bytes: int | None) -> list[dict[str, Tensor]]:
    shards: list[dict[str, Tensor]] = [{}]
    n_bytes = 0
    for name, tensor in weights.items():
        if shards[-1] and max_bytes is not None and n_bytes + tensor.nbytes > max_bytes:
            shards.append({})
            n_bytes = 0
        shards[-1][name] = tensor
        n_bytes += tensor.nbytes
    return shards


def _index(names: list[str], shards: list[dict[str, Tensor]]) -> str:
    total = sum(tensor.nbytes for shard in shards for tensor in shard.values())
    places = {weight: name for name, shard in zip(names, shards, strict=True) for weight in shard}
    return json.dumps({"metadata": {"total_size": total}, "weight_map": places}, indent=2, sort_keys=True) + "\n"
