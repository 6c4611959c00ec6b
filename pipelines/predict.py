"""An encoded block in, what the model gives for it out: the actor of the job, and the core of the service."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from convbert.engine import Engine, Packed
from convbert.models import PreTrainedModel
from pipelines.culprits import failing_alone, good_rows, raise_if_fatal, reason_of, with_errors
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
        ModelError: a checkpoint is not the one that was planned with, or does not run on the device.
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

        ``__tokens`` counts what was encoded of each row. A record on which a model fails gets an ``error``; the
        others get what they would get without it, to the byte.

        Raises:
            ModelError: a model fails on every record, or on some together but on none of them alone.
            DeviceError: only a new process can go on.
        """
        n_tokens = np.zeros(len(block), np.int32)
        for loaded in self._passes:
            block = loaded(block, n_tokens)
        return block.append_column(N_TOKENS, pa.array(n_tokens))


class _LoadedPass:
    """An encoder with its heads in memory."""

    def __init__(self, encoder_pass: EncoderPass, *, device: str, dtype: torch.dtype, max_batch_tokens: int) -> None:
        self.encoding = encoder_pass.encoding
        self.names = ", ".join(plan.name for plan in encoder_pass.heads)
        models = {plan.name: _load(plan) for plan in encoder_pass.heads}  # the engine copies what it needs of them
        self.engine = Engine(
            next(iter(models.values())).base_model,
            {plan.name: plan.head.on_encoder(models[plan.name]) for plan in encoder_pass.heads},
            device=device,
            dtype=dtype,
            max_batch_tokens=max_batch_tokens,
        )
        try:
            self._run_shortest()
        except Exception as error:
            raise ModelError(f"{self.names}: the model does not run on {device}: {reason_of(error)}") from error

    def __call__(self, block: pa.Table, n_tokens: NDArray[np.int32]) -> pa.Table:
        """The block with results, and with an error where the model fails on a record."""
        try:
            return self._label(block, n_tokens)
        except Exception as error:
            raise_if_fatal(error)
        block = self._with_culprits(block)  # when the error, and the memory that its frames hold, is gone
        try:
            return self._label(block, n_tokens)  # in one go, so that the bytes don't tell how the culprits were found
        except Exception as error:
            raise_if_fatal(error)
            raise ModelError(
                f"{self.names}: the model fails on records together, but on none of them alone: {reason_of(error)}"
            ) from error

    def _label(self, block: pa.Table, n_tokens: NDArray[np.int32]) -> pa.Table:
        rows = good_rows(block)
        if not len(rows):
            return block
        sequences = sequences_of(block, self.encoding.name, pa.array(rows))
        for name, result in self.engine(sequences.packed).items():
            width = result.values.shape[-1]
            values = pa.FixedSizeListArray.from_arrays(pa.array(result.values.ravel()), width)
            counts = np.diff(result.offsets[sequences.records])
            block = block.append_column(RESULT + name, list_column(values, counts, pa.array(rows), len(block)))
        n_tokens[rows] += np.diff(sequences.tokens).astype(np.int32)
        return block

    def _with_culprits(self, block: pa.Table) -> pa.Table:
        """The block with an error at each record on which the model fails alone."""

        def attempt(rows: NDArray[np.int64]) -> None:
            self.engine(sequences_of(block, self.encoding.name, pa.array(rows)).packed)

        try:
            reasons = failing_alone(good_rows(block), attempt, control=self._run_shortest)
        except ModelError as error:
            raise ModelError(f"{self.names}: {error}") from error
        failed = {row: f"{self.names}: the model failed on this record: {reason}" for row, reason in reasons.items()}
        return with_errors(block, failed)

    def _run_shortest(self) -> None:
        """Run one token."""
        self.engine(Packed(np.zeros(1, np.int32), np.array([0, 1])))


def _load(plan: HeadPlan) -> PreTrainedModel:
    model = load_model(plan.head, plan.name, plan.url)
    if weights_fingerprint(model) != plan.fingerprint:
        raise ModelError(
            f"--head {plan.name}: the weights at {redacted(plan.url)} have changed since the job was planned: "
            "start it again"
        )
    return model
