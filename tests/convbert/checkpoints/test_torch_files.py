"""Files that PyTorch programs write: read as they were written, and refused when damaged or hostile."""

from __future__ import annotations

import io
import json
import os
import pickle
import pickletools
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from convbert import CheckpointError, ConvBertForSequenceClassification, ConvBertModel
from convbert.checkpoints import read_weights
from convbert.checkpoints.torch_files import read_safetensors


class RunsCode:
    """A pickle of this creates a file when it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.fixture
def saved(classifier: ConvBertForSequenceClassification, tmp_path: Path) -> Path:
    classifier.config.save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("legacy", [False, True])
def test_bin_equals_what_was_saved(saved: Path, classifier: ConvBertForSequenceClassification, legacy: bool) -> None:
    torch.save(classifier.state_dict(), saved / "pytorch_model.bin", _use_new_zipfile_serialization=not legacy)
    loaded, report = ConvBertForSequenceClassification.load(saved)
    assert report == ([], [])
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in classifier.state_dict().items())


@pytest.mark.parametrize("suffix", ["bin", "safetensors"])
def test_old_names_and_counters_are_accepted(
    saved: Path, classifier: ConvBertForSequenceClassification, suffix: str
) -> None:
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in classifier.state_dict().items()
    }
    old["convbert.embeddings.position_ids"] = torch.arange(9)[None]
    if suffix == "bin":
        torch.save(old, saved / "pytorch_model.bin")
    else:
        save_file(old, saved / "model.safetensors")
    loaded, report = ConvBertForSequenceClassification.load(saved)
    assert report == ([], [])
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in classifier.state_dict().items())


def test_a_base_bins_counter_is_accepted(saved: Path, classifier: ConvBertForSequenceClassification) -> None:
    torch.save(
        {**classifier.convbert.state_dict(), "embeddings.position_ids": torch.arange(9)}, saved / "pytorch_model.bin"
    )
    assert ConvBertModel.load(saved)[1] == ([], [])


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_that_would_run_code_is_refused(saved: Path, legacy: bool) -> None:
    trap = saved / "executed"
    path = saved / "pytorch_model.bin"
    torch.save({"weight": RunsCode(trap)}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError, match=r"pytorch_model.bin is refused: .*run code"):
        read_weights(saved)
    assert not trap.exists()
    path.write_bytes(pickle.dumps(RunsCode(trap)))
    with pytest.raises(CheckpointError, match=r"pytorch_model.bin"):
        read_weights(saved)
    assert not trap.exists()


@pytest.mark.parametrize("content", [{"epoch": 3}, [torch.zeros(2)], torch.zeros(2), {"model": {"a": torch.zeros(1)}}])
def test_a_bin_without_named_tensors_is_refused(saved: Path, content: object) -> None:
    torch.save(content, saved / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model.bin is no table of weights"):
        read_weights(saved)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("kept", [0, 1, 20, 300, 0.5, 0.9, 0.999])
def test_a_cut_bin_is_named(
    saved: Path, classifier: ConvBertForSequenceClassification, kept: float, legacy: bool
) -> None:
    path = saved / "pytorch_model.bin"
    torch.save(OrderedDict(classifier.state_dict()), path, _use_new_zipfile_serialization=not legacy)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole)) if isinstance(kept, float) else kept])
    with pytest.raises(CheckpointError, match=r"pytorch_model.bin .*[Cc]opy it again"):
        read_weights(saved)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(2, 3).to_sparse(),
        torch.zeros(2, 3, device="meta"),
        torch.zeros(1).expand(10**9, 10**9),
    ],
    ids=["sparse", "meta", "one element repeated"],
)
@pytest.mark.filterwarnings("ignore:Validating sparse tensor:UserWarning")  # from torch 2.14 on
def test_a_tensor_without_bytes_of_its_own_is_refused(saved: Path, tensor: torch.Tensor) -> None:
    torch.save({"a": tensor}, saved / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"a of .*pytorch_model.bin is no plain tensor"):
        read_weights(saved)


class Reduced:
    """A pickle of this calls a function."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return self.call


N_HOSTILE = 10**6  # elements, of which the file holds none


def without_bytes(path: Path) -> None:
    """The old format, whose last pickle names the storages that follow: none of them."""
    torch.save({"a": torch.zeros(N_HOSTILE)}, path, _use_new_zipfile_serialization=False)
    with path.open("rb") as file:
        for _ in range(4):
            pickletools.dis(file, io.StringIO())
        head = path.read_bytes()[: file.tell()]
    path.write_bytes(head + pickle.dumps([], protocol=2))


def by_a_call(kind: type) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        storage = Reduced(kind, 4 * N_HOSTILE)
        arguments = (storage, 0, (N_HOSTILE,), (1,), False, OrderedDict())
        torch.save({"a": Reduced(torch._utils._rebuild_tensor_v2, *arguments)}, path)

    return write


def all_on_one(path: Path) -> None:
    storage = torch.zeros(N_HOSTILE // 20)
    torch.save({f"w{index}": storage for index in range(20)}, path)


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")  # or it would be what stops the reader
@pytest.mark.parametrize(
    "write",
    [without_bytes, by_a_call(torch.storage.TypedStorage), by_a_call(torch.UntypedStorage), all_on_one],
    ids=["no bytes", "TypedStorage called", "UntypedStorage called", "many names of one storage"],
)
def test_weights_larger_than_their_file_are_refused(saved: Path, write: Callable[[Path], None]) -> None:
    write(saved / "pytorch_model.bin")
    assert (saved / "pytorch_model.bin").stat().st_size < N_HOSTILE
    with pytest.raises(CheckpointError, match=r"pytorch_model.bin (is refused|cannot be read)"):
        read_weights(saved)


TYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.bool]
NEW_TYPES = [torch.uint16, torch.float8_e4m3fn]  # which torch cannot read of the old format


@pytest.mark.parametrize(
    ("dtype", "legacy"), [*((dtype, True) for dtype in TYPES), *((dtype, False) for dtype in [*TYPES, *NEW_TYPES])]
)
def test_tied_weights_and_views_are_no_bomb(saved: Path, dtype: torch.dtype, legacy: bool) -> None:
    table = torch.ones(1000, 8, dtype=torch.float32).to(dtype)
    weights = {"a": table, "b": table, "half": table[:500], "turned": table.T, "bias": torch.ones(3).to(dtype)[1:]}
    torch.save(weights, saved / "pytorch_model.bin", _use_new_zipfile_serialization=not legacy)
    read = read_weights(saved)
    assert all(torch.equal(read[name].float(), tensor.float()) for name, tensor in weights.items())


class TakesMemory:
    """A pickle of this fills a terabyte when it is opened."""

    def __reduce__(self) -> tuple[object, tuple[int]]:
        return bytearray, (10**12,)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_bomb_is_refused_unread(saved: Path, legacy: bool) -> None:
    torch.save({"a": TakesMemory()}, saved / "pytorch_model.bin", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError, match=r"pytorch_model.bin is refused") as found:
        read_weights(saved)
    assert "bytearray" in str(found.value.__cause__)


def test_a_pickle_bomb_before_an_empty_zip_file_is_refused_unread(saved: Path) -> None:
    """A zip file is told by its end, but torch looks at the beginning."""
    path = saved / "pytorch_model.bin"
    torch.save({"a": TakesMemory()}, path, _use_new_zipfile_serialization=False)
    with zipfile.ZipFile(path, "a"):
        pass
    assert zipfile.is_zipfile(path)
    with pytest.raises(CheckpointError, match=r"pytorch_model.bin is refused") as found:
        read_weights(saved)
    assert "bytearray" in str(found.value.__cause__)


def test_a_pickle_bomb_in_capitals_is_refused_unread(saved: Path) -> None:
    """torch finds members whatever their case."""
    path = saved / "pytorch_model.bin"
    torch.save({"a": TakesMemory()}, path)
    path.write_bytes(path.read_bytes().replace(b"/data.pkl", b"/DATA.PKL"))
    with pytest.raises(CheckpointError, match=r"pytorch_model.bin is refused") as found:
        read_weights(saved)
    assert "bytearray" in str(found.value.__cause__)


@pytest.mark.parametrize("version", ["2.8.0", "2.9.1+cu128"])
def test_a_torch_that_reads_pickles_unsafely_reads_none(
    saved: Path, classifier: ConvBertForSequenceClassification, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(classifier.state_dict(), saved / "pytorch_model.bin")
    monkeypatch.setattr(torch, "__version__", version)
    with pytest.raises(CheckpointError, match=r"pytorch_model.bin is refused: torch 2.*Update torch to 2.10, or conv"):
        read_weights(saved)
    classifier.save_pretrained(saved)
    assert ConvBertForSequenceClassification.load(saved)[1] == ([], [])


def test_a_zip_bomb_is_refused_unread(saved: Path) -> None:
    with zipfile.ZipFile(saved / "pytorch_model.bin", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10**6))
    with pytest.raises(CheckpointError, match=r"archive/data.pkl in it is compressed"):
        read_weights(saved)


def test_a_zip_that_is_no_checkpoint_is_named(saved: Path) -> None:
    with zipfile.ZipFile(saved / "pytorch_model.bin", "w") as archive:
        archive.writestr("hello.txt", "hello")
    with pytest.raises(CheckpointError, match=r"pytorch_model.bin .*copy it again"):
        read_weights(saved)


@pytest.mark.parametrize("kept", [0, 4, 8, 100, 0.5, 0.999])
def test_a_cut_safetensors_file_is_named(
    saved: Path, classifier: ConvBertForSequenceClassification, kept: float
) -> None:
    classifier.save_pretrained(saved)
    path = saved / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole)) if isinstance(kept, float) else kept])
    with pytest.raises(CheckpointError, match=r"model.safetensors cannot be read .*copy it again"):
        read_weights(saved)


def test_a_safetensors_file_that_cannot_be_opened_says_why(saved: Path) -> None:
    path = saved / "model.safetensors"
    path.symlink_to(path)  # root may open what its rights forbid, but no link to itself
    with pytest.raises(CheckpointError, match=r"model.safetensors cannot be read .*Too many levels of symbolic links"):
        read_safetensors(path)


def test_another_frameworks_safetensors_are_refused(saved: Path) -> None:
    save_file({"a": torch.zeros(1)}, saved / "model.safetensors", metadata={"format": "flax"})
    with pytest.raises(CheckpointError, match=r"model.safetensors holds weights of 'flax'"):
        read_weights(saved)


@pytest.mark.parametrize(("shape", "end"), [([1000], 4000), ([2**63, 0], 0)])
def test_a_header_that_no_tensor_has_is_named(saved: Path, shape: list[int], end: int) -> None:
    """One that points outside the file, or tells a size beyond torch's numbers."""
    header = json.dumps({"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}}).encode()
    (saved / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(end and 16))
    with pytest.raises(CheckpointError, match=r"model.safetensors cannot be read") as found:
        read_weights(saved)
    assert len(str(found.value)) < 400
