"""A padded batch in, a classifier's logits out, by each engine that ours is measured against.

All have the weights of one Transformers model; ONNX Runtime and OpenVINO read one export of it.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Callable, Iterable
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor

N_THREADS = 2


class Peer(NamedTuple):
    """Another engine.

    Attributes:
        logits: ids and mask (R, L) -> (R, labels).
        note: what a reader must know of it.
    """

    logits: Callable[[Tensor, Tensor], Tensor]
    note: str = ""


class Source:
    """A Transformers classifier, and its exports, made when the first peer asks for them.

    Args:
        model: ids and mask -> logits.
        folder: where exports may be written.
    """

    def __init__(self, model: transformers.PreTrainedModel, folder: Path) -> None:
        self.model = model.eval()
        self.folder = folder

    @cached_property
    def onnx(self) -> Path:
        """The model as ONNX, for any number of records and tokens."""
        path = self.folder / "model.onnx"
        ids = torch.randint(5, self.model.config.vocab_size, (2, 128))
        any_size = {0: torch.export.Dim("records"), 1: torch.export.Dim("tokens")}
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                self.model,
                (ids, torch.ones_like(ids)),
                path,
                input_names=["input_ids", "attention_mask"],
                output_names=["logits"],
                dynamic_shapes=(any_size, any_size),
                dynamo=True,
                verbose=False,
            )
        return path

    @cached_property
    def onnx_int8(self) -> Path:
        """The same with int8 weights by channel, and activations quantised as they come."""
        from onnxruntime.quantization import QuantType, quantize_dynamic

        path = self.folder / "model-int8.onnx"
        quantize_dynamic(self.onnx, path, weight_type=QuantType.QInt8, per_channel=True)
        return path


def eager(source: Source, dtype: torch.dtype) -> Peer:
    """Transformers as it is."""
    return _torch_peer(source.model if dtype == torch.float32 else copy.deepcopy(source.model).to(dtype))


def compiled(source: Source, dtype: torch.dtype) -> Peer:
    """Transformers under torch.compile, for one shape."""
    return _torch_peer(torch.compile(copy.deepcopy(source.model).to(dtype), dynamic=False))


def _torch_peer(model: Callable[..., Any]) -> Peer:
    @torch.inference_mode()
    def logits(ids: Tensor, mask: Tensor) -> Tensor:
        found: Tensor = model(input_ids=ids, attention_mask=mask).logits
        return found.float()

    return Peer(logits)


def onnx_runtime(source: Source, *, int8: bool) -> Peer:
    """ONNX Runtime on the processor."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = N_THREADS
    # its threads must not spin on while the next contender is timed
    options.add_session_config_entry("session.force_spinning_stop", "1")
    path = source.onnx_int8 if int8 else source.onnx
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return Peer(lambda ids, mask: torch.from_numpy(session.run(None, _feed(ids, mask))[0]))


def openvino(source: Source, precision: str) -> Peer:
    """OpenVINO on the processor, asked for a precision: where that is slow there, it takes another."""
    import openvino as ov

    settings = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": N_THREADS}
    model = ov.Core().compile_model(source.onnx, "CPU", settings)
    taken = model.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    return Peer(
        lambda ids, mask: torch.from_numpy(model(_feed(ids, mask))[0]),
        note="" if taken == precision else f"OpenVINO takes {taken} on this processor",
    )


def _feed(ids: Tensor, mask: Tensor) -> dict[str, Any]:
    return {"input_ids": ids.numpy(), "attention_mask": mask.numpy()}


PEERS: dict[str, Callable[[Source], Peer]] = {
    "Transformers fp32": partial(eager, dtype=torch.float32),
    "Transformers bf16": partial(eager, dtype=torch.bfloat16),
    "torch.compile fp32": partial(compiled, dtype=torch.float32),
    "torch.compile bf16": partial(compiled, dtype=torch.bfloat16),
    "ONNX Runtime fp32": partial(onnx_runtime, int8=False),
    "ONNX Runtime int8": partial(onnx_runtime, int8=True),
    "OpenVINO fp32": partial(openvino, precision="f32"),
    "OpenVINO bf16": partial(openvino, precision="bf16"),
}


def make_peers(names: Iterable[str], source: Source) -> tuple[dict[str, Peer], dict[str, str]]:
    """Those peers that can be had, and of each other why not."""
    found: dict[str, Peer] = {}
    missing: dict[str, str] = {}
    for name in names:
        try:
            found[name] = PEERS[name](source)
        except ImportError as error:
            missing[name] = f"not measured: {error}"
    return found, missing
