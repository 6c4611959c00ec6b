"""An encoded block in, what the model gives for it out: the actor of the job, and the core of the service."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import torch

from convbert.engine import Engine
from convbert.models import PreTrainedModel
from pipelines.errors import ModelError
from pipelines.models import EncoderPass, HeadPlan, load_model, weights_fingerprint
from pipelines.sequences import list_column, sequences_of
from pipelines.storage import redacted

N_TOKENS = "__tokens"
RESULT = "__result_"  # and the head's name: list of fixed-size lists of float32
DEFAULT_BATCH_TOKENS = {"cpu": 4096, "cuda": 65536}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Predictor:
    """Loads the models once, then labels block after block.

    Args:
        passes: encoders and their heads, as planned on the driver.
        device: ``cpu`` or ``cuda``.
        precision: a key of DTYPES.
        max_batch_tokens: token budget of a micro-batch; None takes the device's default.
        n_threads: CPU threads to compute with; None leaves torch's own choice.

    Raises:
        ModelError: a checkpoint is not the one that was planned with.
    """

    def __init__(
        self,
        passes: Sequence[EncoderPass],
        *,
        device: str = "cpu",
        precision: str = "fp32",
        max_batch_tokens: int | None = None,
        n_threads: int | None = None,
    ) -> None:
        if n_threads is not None:
            torch.set_num_threads(n_threads)
        self._passes = [
            _LoadedPass(
                encoder_pass,
                device=device,
                dtype=DTYPES[precision],
                max_batch_tokens=max_batch_tokens or DEFAULT_BATCH_TOKENS[device],
            )
            for encoder_pass in passes
        ]

    def __call__(self, block: pa.Table) -> pa.Table:
        """The block with what the model gave to each head, which pipelines.decode makes a column of.

        ``__tokens`` counts what was encoded of each row.
        """
        rows = pa.array(np.flatnonzero(block["error"].is_null().to_numpy()))
        n_tokens = np.zeros(len(block), np.int32)
        for loaded in self._passes if len(rows) else ():
            block = loaded(block, rows, n_tokens)
        return block.append_column(N_TOKENS, pa.array(n_tokens))


class _LoadedPass:
    """An encoder with its heads in memory."""

    def __init__(self, encoder_pass: EncoderPass, *, device: str, dtype: torch.dtype, max_batch_tokens: int) -> None:
        self.encoding = encoder_pass.encoding
        models = {plan.name: _load(plan) for plan in encoder_pass.heads}  # the engine copies what it needs of them
        self.engine = Engine(
            next(iter(models.values())).base_model,
            {plan.name: plan.head.on_encoder(models[plan.name]) for plan in encoder_pass.heads},
            device=device,
            dtype=dtype,
            max_batch_tokens=max_batch_tokens,
        )

    def __call__(self, block: pa.Table, rows: pa.Array, n_tokens: np.ndarray) -> pa.Table:
        sequences = sequences_of(block, self.encoding.name, rows)
        n_tokens[rows.to_numpy()] += np.diff(sequences.tokens).astype(np.int32)
        for name, result in self.engine(sequences.packed).items():
            width = result.values.shape[-1]
            values = pa.FixedSizeListArray.from_arrays(pa.array(result.values.ravel()), width)
            counts = np.diff(result.offsets[sequences.records])
            block = block.append_column(RESULT + name, list_column(values, counts, rows, len(block)))
        return block


def _load(plan: HeadPlan) -> PreTrainedModel:
    model = load_model(plan.head, plan.name, plan.url)
    if weights_fingerprint(model) != plan.fingerprint:
        raise ModelError(
            f"--head {plan.name}: the weights at {redacted(plan.url)} have changed since the job was planned: "
            "start it again"
        )
    return model
