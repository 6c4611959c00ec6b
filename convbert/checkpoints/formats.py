"""How checkpoints file their weights: in one file, or in shards that an index names."""

from __future__ import annotations

from typing import NamedTuple


class Format(NamedTuple):
    """File names of one format.

    Attributes:
        single_name: the file of all weights.
        index_name: the file that names shards, JSON.
        suffix: how the shards end, and the one file.
    """

    single_name: str
    index_name: str
    suffix: str


SAFETENSORS = Format("model.safetensors", "model.safetensors.index.json", ".safetensors")
TORCH_BIN = Format("pytorch_model.bin", "pytorch_model.bin.index.json", ".bin")
KERAS = Format("tf_model.h5", "tf_model.h5.index.json", ".h5")

# Where a folder holds several, the first is read, as in Transformers; a TF1 checkpoint comes last.
FORMATS = (SAFETENSORS, TORCH_BIN, KERAS)

# Large files that no format here needs where one of FORMATS is there: other frameworks' weights, training states.
OTHER_SUFFIXES = (".msgpack", ".ot", ".onnx", ".pt", ".pth", ".gguf", ".meta")
TF1_DATA = r".*\.data-\d{5}-of-\d{5}"
