"""The original repository's TF1 checkpoint in, weights and the config that their shapes tell out."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import torch
from torch import Tensor

from convbert.checkpoints.names import TF1_GENERATOR_RULES, TF1_NO_WEIGHTS, TF1_RULES, renamed
from convbert.checkpoints.tensor_bundle import DTYPES, TensorBundle
from convbert.config import ConvBertConfig
from convbert.errors import CheckpointError

logger = logging.getLogger(__name__)

STATE_NAME = "checkpoint"  # names the newest of several checkpoints in a folder


def find_index(folder: Path) -> Path | None:
    """The ``.index`` file of the folder's TF1 checkpoint: the one that ``checkpoint`` names, else the only one.

    Raises:
        CheckpointError: several, of which none is named.
    """
    found = sorted(folder.glob("*.index"))
    if len(found) < 2:
        return found[0] if found else None
    state = folder / STATE_NAME
    text = state.read_text(encoding="utf-8", errors="replace") if state.is_file() else ""
    named = re.search(r'^model_checkpoint_path: "([^"]*)"', text, re.MULTILINE)
    if named:
        # An absolute path is where the checkpoint was trained; the file beside us has its last part as its name.
        chosen = folder / (re.split(r"[\\/]", named[1])[-1] + ".index")
        if chosen in found:
            return chosen
    names = ", ".join(path.name for path in found)
    raise CheckpointError(f"{folder} holds several TF1 checkpoints ({names}): leave one of them there")


def read_tf1(index: Path) -> dict[str, Tensor]:
    """All weights of a TF1 checkpoint.

    The encoder is the scope ``electra``. Where pre-training kept a smaller generator (scope ``generator``),
    the head ``generator_predictions`` belongs to that: both keep their names, so that loading reports them.

    Raises:
        CheckpointError: files that are damaged or missing.
    """
    bundle = TensorBundle(index)
    weights = {name: torch.from_numpy(bundle.read(name).copy()) for name in _weight_names(bundle)}
    return _renamed(weights, index)


def derive_config(index: Path) -> ConvBertConfig:
    """The config of a TF1 checkpoint that has no config.json, from the shapes of its weights.

    Shapes do not tell ``num_attention_heads`` from ``head_ratio``: only their quotient, on which alone the
    model depends, so the paper's ratio 2 is used. The activation (GELU), the epsilon (1e-12) and [PAD]'s
    id (0) are constants of the original code.

    Raises:
        CheckpointError: shapes that are no ConvBERT's.
    """
    bundle = TensorBundle(index)
    shapes = {
        name: torch.empty(bundle.variables[name].shape, device="meta")
        for name in _weight_names(bundle)
        if bundle.variables[name].dtype in DTYPES
    }
    weights = {name.removeprefix("convbert."): tensor for name, tensor in _renamed(shapes, index).items()}
    attention = "encoder.layer.0.attention.self."
    try:
        intermediate = weights["encoder.layer.0.intermediate.dense.weight"]
        grouped = intermediate.dim() == 3
        kernel_size = weights[attention + "key_conv_attn_layer.depthwise.weight"].shape[2]
        n_heads = weights[attention + "conv_kernel_layer.bias"].shape[0] // kernel_size
        config = ConvBertConfig(
            vocab_size=weights["embeddings.word_embeddings.weight"].shape[0],
            embedding_size=weights["embeddings.word_embeddings.weight"].shape[1],
            max_position_embeddings=weights["embeddings.position_embeddings.weight"].shape[0],
            type_vocab_size=weights["embeddings.token_type_embeddings.weight"].shape[0],
            hidden_size=weights[attention + "query.weight"].shape[1],
            num_hidden_layers=len({name for name in weights if name.endswith("attention.self.query.weight")}),
            num_attention_heads=2 * n_heads,
            head_ratio=2,
            conv_kernel_size=kernel_size,
            intermediate_size=weights["encoder.layer.0.intermediate.dense.bias"].shape[0],
            num_groups=intermediate.shape[0] if grouped else 1,
            pad_token_id=0,
            bos_token_id=None,
            eos_token_id=None,
        )
    except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
        raise CheckpointError(
            f"{index} has no config.json beside it, and its weights tell none ({error}): put config.json there"
        ) from error
    logger.warning(
        "%s has no config.json: sizes are taken from its weights, hidden_act gelu, layer_norm_eps 1e-12 and "
        "pad_token_id 0 from the original code",
        index.parent,
    )
    return config


def _weight_names(bundle: TensorBundle) -> list[str]:
    return [name for name in bundle.variables if not re.fullmatch(TF1_NO_WEIGHTS, name)]


def _renamed(weights: dict[str, Tensor], index: Path) -> dict[str, Tensor]:
    has_generator = any(name.startswith("generator/encoder/") for name in weights)
    return renamed(weights.items(), TF1_RULES if has_generator else TF1_RULES + TF1_GENERATOR_RULES, source=index)
