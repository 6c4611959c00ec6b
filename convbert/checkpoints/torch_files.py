"""A file of weights that PyTorch programs write in, its tensors by name out: safetensors and ``.bin``."""

from __future__ import annotations

import io
import pickle
import pickletools
import re
import zipfile
from pathlib import Path
from typing import IO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from convbert.checkpoints.keras_files import from_keras
from convbert.checkpoints.names import OLD_TORCH_RULES, renamed
from convbert.errors import CheckpointError

_N_OLD_PICKLES = 5  # of the format before zip files: magic number, version, machine, tensors, keys of their bytes
_GLOBALS = re.compile(
    r"collections OrderedDict|torch Size|torch\.nn\.parameter Parameter|torch \w*Storage|torch\.storage UntypedStorage"
    r"|torch\._utils _rebuild_\w+|torch\.serialization _get_layout|torch device|torch [a-z]+\d*(?:_\w+)?"
)
"""All that a table of weights is made of; torch.load takes more, such as codecs that double bytes."""
_ZIP_MAGIC = b"PK\x03\x04"
_MOST_NAMES = 4  # of one table: tied weights have two
_SAFE_TORCH = (2, 10)  # CVE-2026-24747: before it a crafted pickle writes past memory, weights_only or not


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file; those that Transformers' TensorFlow classes wrote are converted.

    Raises:
        CheckpointError: the file is damaged, or its weights are another framework's.
    """
    try:
        path.open("rb").close()  # of a file that may not be read, safetensors says that it is not there
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 -- no mapping
    except (SafetensorError, OSError, ValueError, TypeError, RuntimeError) as error:  # the last two: impossible sizes
        raise CheckpointError(f"{path} cannot be read ({_first_line(error)}): copy it again") from error
    match metadata.get("format", "pt"):
        case "pt" | "np":
            return renamed(weights.items(), OLD_TORCH_RULES, source=path)
        case "tf":
            return from_keras(weights.items(), source=path)
        case other:
            raise CheckpointError(f"{path} holds weights of {other!r}: save them for PyTorch, or give a .bin or .h5")


def read_bin(path: Path) -> dict[str, Tensor]:
    """The tensors of a ``pytorch_model.bin``. It is a pickle, of which only tensors are read: no code runs.

    Raises:
        CheckpointError: the file is damaged, holds something else than named tensors, or would run code; or this
            torch is older than 2.10, whose reader is not safe.
    """
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < _SAFE_TORCH:
        raise CheckpointError(
            f"{path} is refused: torch {torch.__version__} does not read pickles safely (CVE-2026-24747). "
            "Update torch to 2.10, or convert the file to model.safetensors on a machine that has it"
        )
    try:
        _check_growth(path)
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} is refused: it is damaged, or would run code when it is opened. "
            "Copy it again, or ask its author for model.safetensors"
        ) from error
    except Exception as error:  # torch raises whatever its parsers meet in bytes that are no checkpoint
        raise CheckpointError(f"{path} cannot be read ({_first_line(error)}): copy it again") from error
    if not isinstance(weights, dict) or not all(
        isinstance(name, (str, int)) and isinstance(tensor, Tensor) for name, tensor in weights.items()
    ):
        raise CheckpointError(f"{path} is no table of weights: give the file that save_pretrained wrote")
    for name, tensor in weights.items():
        if not _is_plain(tensor):
            raise CheckpointError(f"{name} of {path} is no plain tensor: give the file that save_pretrained wrote")
    _check_bytes(path, list(weights.values()))
    return renamed(((str(name), tensor) for name, tensor in weights.items()), OLD_TORCH_RULES, source=path)


def _check_growth(path: Path) -> None:
    """See that nothing in the file makes more memory than the file has bytes, as torch.load would let it.

    torch.save compresses nothing, and has no use for ``bytearray``, which fills as much memory as it is told to.
    What is looked at is what torch.load reads: it tells a zip file by its beginning, and finds the pickle by its
    own reader, which takes ``DATA.PKL`` too.
    """
    with path.open("rb") as file:
        if file.read(len(_ZIP_MAGIC)) != _ZIP_MAGIC:
            file.seek(0)
            return _check_pickles(file, _N_OLD_PICKLES)
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if member.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"{member.filename} in it is compressed")
    reader = torch._C.PyTorchFileReader(str(path))  # which may find another directory than zipfile, and members twice
    if sum(map(reader.get_record_size, reader.get_all_records())) > path.stat().st_size:
        raise ValueError("its members are larger than it")
    return _check_pickles(io.BytesIO(reader.get_record("data.pkl")), 1)


def _check_pickles(file: IO[bytes], n_pickles: int) -> None:
    for _ in range(n_pickles):
        for code, argument, _ in pickletools.genops(file):
            if code.name == "GLOBAL" and not _GLOBALS.fullmatch(str(argument)):
                raise pickle.UnpicklingError(f"it makes a {argument}")


def _check_bytes(path: Path, tensors: list[Tensor]) -> None:
    """See that the tensors' bytes are the file's, and that not many of them are the same.

    A pickle may name storages that the file does not hold; torch leaves what was in the memory in them.
    """
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    n_stored, n_bytes, n_file = sum(storages.values()), sum(tensor.nbytes for tensor in tensors), path.stat().st_size
    if n_stored > n_file or n_bytes > _MOST_NAMES * n_file:
        raise CheckpointError(
            f"{path} is refused: its weights would take {max(n_stored, n_bytes):,} bytes, but it has {n_file:,}. "
            "Give the file that save_pretrained wrote"
        )


def _is_plain(tensor: Tensor) -> bool:
    """Whether every element has bytes of its own: not sparse, nested, on the meta device or one element repeated."""
    if tensor.layout != torch.strided or tensor.is_nested or tensor.device.type != "cpu":
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
