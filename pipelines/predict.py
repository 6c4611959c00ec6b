"""An encoded block in, what the model gives for it out: the actor of the job, and the core of the service."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from convbert import ConvBertError, engine
from convbert.engine import Packed, Rows
from pipelines.culprits import good_rows, reason_of, sparing_culprits, with_errors
from pipelines.duplicates import distinct
from pipelines.errors import ModelError, PipelineError
from pipelines.models import EncoderPass, HeadPlan, load_model, weights_fingerprint
from pipelines.results import N_COPIED, N_TOKENS, add_result
from pipelines.sequences import Sequences, sequences_of
from pipelines.storage import redacted

if TYPE_CHECKING:
    from convbert.models import PreTrainedModel

_USUAL_LENGTH = 128  # tokens


class Labelled(NamedTuple):
    """What the models gave for the records on which they did not fail.

    Attributes:
        results: each head's rows.
        records: (R,) their numbers, ascending.
        n_tokens: (R,) that were encoded of each.
        is_copy: (R,) whether its rows are those of an equal record before it.
    """

    results: dict[str, Rows]
    records: NDArray[np.int64]
    n_tokens: NDArray[np.int64]
    is_copy: NDArray[np.bool_]


class Predictor:
    """Loads the models once, then labels block after block.

    Args:
        passes: encoders and their heads, as planned on the driver.
        device: ``cpu`` or ``cuda``.
        precision: one of ``convbert.engine.PRECISIONS``.
        max_batch_tokens: token budget of a micro-batch; None takes what the device is fast with.
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
            import torch

            torch.set_num_threads(n_threads)
        self._passes = [
            _LoadedPass(
                encoder_pass,
                device=device,
                precision=precision,
                max_batch_tokens=max_batch_tokens,
            )
            for encoder_pass in passes
        ]

    def __call__(self, block: pa.Table) -> pa.Table:
        """The block with what the model gave to each head, which pipelines.decode makes a column of.

        Equal records are computed once. ``__tokens`` counts what was encoded of each row, and ``__copied`` those of
        them whose results were taken from an equal record. A record on which a model fails gets an ``error``; the
        others get what they would get without it, to the byte.

        Raises:
            RunError: a model fails on every record, or on some only together.
            DeviceError: only a new process can go on.
        """
        for name in (N_TOKENS, N_COPIED):
            block = block.append_column(name, pa.array(np.zeros(len(block), np.int32)))
        for loaded in self._passes:
            block = loaded(block)
        return block

    def run(self, name: str, sequences: Sequences) -> tuple[Labelled, dict[int, str]]:
        """The same for the sequences of at least one record, by the pass whose encoding has this name.

        Returns:
            What the model gives, and the errors of the records on which it fails.
        """
        return next(loaded for loaded in self._passes if loaded.encoding.name == name).run(sequences)

    @property
    def max_batch_tokens(self) -> int:
        """Token budget of a micro-batch, as given or as found for the device."""
        return min(loaded.engine.max_batch_tokens for loaded in self._passes)

    def time_batch(self) -> tuple[int, float]:
        """Tokens of a full micro-batch of every encoder, and the seconds that they take."""
        started = time.perf_counter()
        return sum(loaded.run_full_batch() for loaded in self._passes), time.perf_counter() - started

    def check(self) -> None:
        """Run every encoder and head on the shortest input there is.

        Raises:
            Exception: it does not work any more.
        """
        for loaded in self._passes:
            loaded.check()


@contextmanager
def _running(names: str, device: str, *, but: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Say of what fails, but for these errors, that the heads' model does not run on the device."""
    try:
        yield
    except but:
        raise
    except Exception as error:
        raise ModelError(f"{names}: the model does not run on {device}: {reason_of(error)}") from error


class _LoadedPass:
    """An encoder with its heads in memory."""

    def __init__(self, encoder_pass: EncoderPass, *, device: str, precision: str, max_batch_tokens: int | None) -> None:
        self.encoding = encoder_pass.encoding
        self.names = ", ".join(plan.name for plan in encoder_pass.heads)
        with _running(self.names, device, but=(PipelineError, ConvBertError)):
            self.engine = load_engine(
                encoder_pass, device=device, precision=precision, max_batch_tokens=max_batch_tokens
            )
        with _running(self.names, device):
            self.check()

    def __call__(self, block: pa.Table) -> pa.Table:
        """The block with results, and with an error where the model fails on a record."""
        rows = good_rows(block)
        if not len(rows):
            return block
        labelled, errors = self.run(sequences_of(block, self.encoding.name, pa.array(rows)))
        its = rows[labelled.records]
        for name, result in labelled.results.items():
            block = add_result(block, name, result, its)
        block = _with_more(block, N_TOKENS, its, labelled.n_tokens)
        block = _with_more(block, N_COPIED, its, labelled.n_tokens * labelled.is_copy)
        return with_errors(block, {int(rows[record]): error for record, error in errors.items()})

    def run(self, sequences: Sequences) -> tuple[Labelled, dict[int, str]]:
        """What the model gives for at least one record, equal ones computed once, and errors where it fails."""
        everything = np.arange(len(sequences.records) - 1)

        def attempt(records: NDArray[np.int64]) -> Labelled:
            some = sequences if len(records) == len(everything) else sequences.take(records)
            return self._labelled(some, records)

        return sparing_culprits(everything, attempt, control=self.check, what=f"{self.names}: the model")

    def _labelled(self, sequences: Sequences, records: NDArray[np.int64]) -> Labelled:
        kinds = distinct(sequences)
        computed = sequences.take(kinds.firsts) if kinds.has_copies else sequences
        found = self.engine(computed.packed) if len(records) else {}
        results = {
            name: kinds.spread(Rows(rows.values, rows.offsets[computed.records])) for name, rows in found.items()
        }
        return Labelled(results, records, np.diff(sequences.tokens), kinds.is_copy)

    def run_full_batch(self) -> int:
        """Run a micro-batch of sequences of usual length.

        Returns:
            How many tokens it has.
        """
        length = min(_USUAL_LENGTH, self.encoding.max_length)
        n_tokens = length * max(1, self.engine.max_batch_tokens // length)
        self.engine(Packed(np.zeros(n_tokens, np.int32), np.arange(0, n_tokens + 1, length)))
        return n_tokens

    def check(self) -> None:
        """Run one token."""
        self.engine(Packed(np.zeros(1, np.int32), np.array([0, 1])))


def load_engine(
    encoder_pass: EncoderPass, *, device: str = "cpu", precision: str = "fp32", max_batch_tokens: int | None = None
) -> engine.Engine:
    """The encoder and heads of a pass; the arguments are the Predictor's.

    Raises:
        ModelError: a checkpoint is not the one that was planned with.
    """
    models = {plan.name: _load(plan) for plan in encoder_pass.heads}  # the engine copies what it needs of them
    return engine.Engine(
        next(iter(models.values())).base_model,
        {plan.name: plan.head.on_encoder(models[plan.name]) for plan in encoder_pass.heads},
        device=device,
        precision=precision,
        max_batch_tokens=max_batch_tokens,
    )


def _with_more(block: pa.Table, name: str, rows: NDArray[np.int64], counts: NDArray[np.int64]) -> pa.Table:
    """The block with these counts added to a column's at these rows."""
    totals = block[name].to_numpy().copy()
    totals[rows] += counts.astype(np.int32)
    return block.set_column(block.schema.get_field_index(name), name, pa.array(totals))


def _load(plan: HeadPlan) -> PreTrainedModel:
    model = load_model(plan.head, plan.url, plan.config)
    if weights_fingerprint(model) != plan.fingerprint:
        raise ModelError(
            f"--head {plan.name}: the weights at {redacted(plan.url)} have changed since the job was planned: "
            "start it again"
        )
    return model
