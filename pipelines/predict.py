"""An encoded block in, one struct column a head out: the actor of the job, and the core of the service."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import torch

from convbert.engine import Engine, Packed
from convbert.models import PreTrainedModel
from pipelines.errors import ModelError
from pipelines.models import EncoderPass, HeadPlan, load_head
from pipelines.storage import redacted

N_TOKENS = "__tokens"
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
        """Predictions in place of token ids, rows in their order; failed rows get null.

        ``__tokens`` counts what was computed for each row.
        """
        rows = pa.array(np.flatnonzero(block["error"].is_null().to_numpy()))
        n_tokens = np.zeros(len(block), np.int32)
        for loaded in self._passes:
            block = loaded(block, rows, n_tokens)
        return block.append_column(N_TOKENS, pa.array(n_tokens))


class _LoadedPass:
    """An encoder with its heads in memory."""

    def __init__(self, encoder_pass: EncoderPass, *, device: str, dtype: torch.dtype, max_batch_tokens: int) -> None:
        self.encoding = encoder_pass.encoding
        self.heads = {plan.name: plan.head for plan in encoder_pass.heads}
        models = {plan.name: _load(plan) for plan in encoder_pass.heads}  # the engine copies what it needs of them
        self.engine = Engine(
            next(iter(models.values())).base_model,
            {name: head.module(models[name]) for name, head in self.heads.items()},
            device=device,
            dtype=dtype,
            max_batch_tokens=max_batch_tokens,
        )

    def __call__(self, block: pa.Table, rows: pa.Array, n_tokens: np.ndarray) -> pa.Table:
        ids = block[self.encoding.ids].take(rows).combine_chunks()
        has_types = self.encoding.types in block.column_names
        types = block[self.encoding.types].take(rows).combine_chunks() if has_types else None
        results = self.engine(packed(ids, types)) if len(rows) else {}
        n_tokens[rows.to_numpy()] += ids.value_lengths().to_numpy()
        for name, head in self.heads.items():
            column = head.to_arrow(results[name]) if results else pa.array([], head.schema)
            block = block.append_column(name, _spread(column, rows, len(block)))
        return block.drop_columns([self.encoding.ids, *([self.encoding.types] if has_types else [])])


def packed(ids: pa.ListArray, types: pa.ListArray | None = None) -> Packed:
    """An Arrow list array is a packed batch already: its values and offsets, not copied."""
    offsets = ids.offsets.to_numpy()
    first, last = offsets[0], offsets[-1]
    return Packed(
        ids.values.to_numpy()[first:last],
        offsets - first,
        None if types is None else types.values.to_numpy()[types.offsets[0].as_py() : types.offsets[-1].as_py()],
    )


def _spread(values: pa.StructArray, rows: pa.Array, n_rows: int) -> pa.Array:
    """Values at these rows, null elsewhere."""
    places = np.full(n_rows, -1)
    places[rows.to_numpy()] = np.arange(len(values))
    return values.take(pa.array(places, mask=places < 0))


def _load(plan: HeadPlan) -> PreTrainedModel:
    loaded = load_head(plan.name, plan.url)
    if loaded.plan.fingerprint != plan.fingerprint:
        raise ModelError(
            f"--head {plan.name}: the weights at {redacted(plan.url)} have changed since the job was planned: "
            "start it again"
        )
    return loaded.model
