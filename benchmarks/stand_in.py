"""Actors in place of the model: one that computes nothing, and one that waits as long as a model would compute."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from convbert.engine import Rows
from convbert.engine.packing import offsets_of
from pipelines.culprits import good_rows
from pipelines.models import EncoderPass
from pipelines.predict import Predictor
from pipelines.results import N_COPIED, N_TOKENS, add_result
from pipelines.sequences import sequences_of


class NullPredictor(Predictor):
    """Loads no model; every sequence gets a zero for each label of each head.

    Args:
        passes: of classifiers of whole texts.
        model: settings of the real actor, which mean nothing here.
    """

    def __init__(self, passes: Sequence[EncoderPass], **model: Any) -> None:
        self._encoder_passes = passes

    def __call__(self, block: pa.Table) -> pa.Table:
        """The block with columns of the same names and types as the real actor's."""
        rows = good_rows(block)
        n_tokens = np.zeros(len(block), np.int32)
        for encoder_pass in self._encoder_passes:
            sequences = sequences_of(block, encoder_pass.encoding.name, pa.array(rows))
            n_tokens[rows] += np.diff(sequences.tokens).astype(np.int32)
            counts = np.diff(sequences.records)
            for plan in encoder_pass.heads:
                zeros = np.zeros((counts.sum(), len(plan.head.labels)), np.float32)
                block = add_result(block, plan.name, Rows(zeros, offsets_of(counts)), rows)
        block = block.append_column(N_TOKENS, pa.array(n_tokens))
        return block.append_column(N_COPIED, pa.array(np.zeros(len(block), np.int32)))


class Call(NamedTuple):
    """One unit in an actor.

    Attributes:
        actor: its process.
        start, stop: seconds since the epoch.
        wait_s: what a model would have computed for.
    """

    actor: int
    start: float
    stop: float
    wait_s: float


def waiting(*, tokens_per_s: float, log: str) -> type[Predictor]:
    """An actor that takes as long for a unit as a model of that rate, and writes each call down in a local file."""

    class Waiting(NullPredictor):
        def __call__(self, block: pa.Table) -> pa.Table:
            start = time.time()
            result = super().__call__(block)
            wait_s = float(result[N_TOKENS].to_numpy().sum()) / tokens_per_s
            time.sleep(max(0.0, start + wait_s - time.time()))
            with Path(log).open("a") as file:
                file.write(f"{os.getpid()} {start!r} {time.time()!r} {wait_s!r}\n")
            return result

    return Waiting


def calls_of(lines: Iterable[str]) -> list[Call]:
    """What the actors have written down."""
    fields = (line.split() for line in lines)
    return [Call(int(actor), float(start), float(stop), float(wait_s)) for actor, start, stop, wait_s in fields]
