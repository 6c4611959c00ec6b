"""Batches filled up to a size and started in one call; test_gpu.py has the graphs themselves."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from convbert import ConvBertConfig, ConvBertModel
from convbert.engine import EachToken, Engine, Packed, PackedEncoder, attention, budget, graphs
from convbert.engine.graphs import SIZES, TOKENS_A_RECORD, Graphs, size_of
from tests.conftest import VOCAB, tiny_config
from tests.convbert.engine.conftest import run_again
from tests.convbert.engine.varlen import varlen_reference

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("n_tokens", "n_records", "expected"),
    [
        (1, 1, 64),
        (64, 4, 64),
        (65, 4, 128),
        (64, 5, 128),
        (8192, 512, 8192),
        (8193, 1, None),
        (600, 513, None),
    ],
)
def test_the_least_size_that_holds_all(n_tokens: int, n_records: int, expected: int | None) -> None:
    assert size_of(n_tokens, n_records) == expected


def test_no_recorded_batch_is_what_the_budget_is_measured_with() -> None:
    assert max(SIZES) < budget.PROBED_TOKENS


def doubled(values: torch.Tensor, size: int) -> torch.Tensor:
    return 2 * values + size


def test_a_size_is_recorded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded: list[object] = []

    def noting(function: Callable[[], torch.Tensor], device: torch.device, pool: object) -> object:
        recorded.append(function)
        return run_again(function, device, pool)

    monkeypatch.setattr(graphs, "record", noting)
    here = Graphs(CPU)
    for values, size in (([1, 2], 2), ([3], 1), ([4, 5], 2), ([6], 1)):
        assert here.run(doubled, np.array(values), size).tolist() == [2 * value + size for value in values]
    assert len(recorded) == 2


def test_a_result_stays_when_others_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "record", run_again)
    here = Graphs(CPU)
    results = [here.run(doubled, np.array([value]), 1) for value in range(3)]
    assert [result.tolist() for result in results] == [[1], [3], [5]]


def test_the_values_that_are_given_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "record", run_again)
    here, first = Graphs(CPU), np.array([1])
    here.run(doubled, first, 1)
    here.run(doubled, np.array([9]), 1)
    assert first.tolist() == [1]


def test_where_recording_fails_all_runs_as_written(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tries: list[object] = []

    def failing(*args: object) -> None:
        tries.append(args)
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing")

    monkeypatch.setattr(graphs, "record", failing)
    here = Graphs(CPU)
    with caplog.at_level(logging.WARNING):
        for value, size in ((1, 1), (2, 1), (3, 2)):
            assert here.run(doubled, np.array([value]), size).tolist() == [2 * value + size]
    assert len(tries) == len(caplog.records) == 1
    assert "not permitted" in caplog.text


def test_an_error_of_the_function_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "record", run_again)

    def full(values: torch.Tensor, size: int) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    here = Graphs(CPU)
    with pytest.raises(torch.OutOfMemoryError):
        here.run(full, np.array([1]), 1)
    assert here.run(doubled, np.array([1]), 1).tolist() == [3]


@pytest.fixture
def encoder() -> ConvBertModel:
    torch.manual_seed(0)
    return ConvBertModel(ConvBertConfig.from_dict(tiny_config(type_vocab_size=3).to_dict())).eval()


def batch_of(*lengths: int) -> Packed:
    rng, n_tokens = np.random.default_rng(sum(lengths)), sum(lengths)
    ids, types = rng.integers(1, len(VOCAB), n_tokens), rng.integers(0, 3, n_tokens)
    return Packed(ids, np.concatenate([[0], np.cumsum(lengths)]), types)


BATCHES = [(1,), (3, 60), (64,), (5, 1, 2, 40), (17,) * 8, (30, 30, 3), (1,) * 8]


@pytest.mark.usefixtures("as_on_a_gpu")
def test_what_fills_a_batch_up_changes_no_record(encoder: ConvBertModel, monkeypatch: pytest.MonkeyPatch) -> None:
    filled = PackedEncoder(encoder, device=CPU)
    found = [filled(batch_of(*lengths)) for lengths in BATCHES]
    monkeypatch.setattr("convbert.engine.encoder.size_of", lambda *counts: None)
    as_it_is = PackedEncoder(encoder, device=CPU)
    for lengths, states in zip(BATCHES, found, strict=True):
        torch.testing.assert_close(states, as_it_is(batch_of(*lengths)), msg=str(lengths))


@pytest.mark.usefixtures("as_on_a_gpu")
def test_small_batches_alone_are_filled_up(encoder: ConvBertModel, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    original = Graphs.run

    def noting(self: Graphs, function: Callable[..., torch.Tensor], values: np.ndarray, size: int) -> torch.Tensor:
        sizes.append(size)
        return original(self, function, values, size)

    monkeypatch.setattr(Graphs, "run", noting)
    packed = PackedEncoder(encoder, device=CPU)
    packed(batch_of(3))
    packed(batch_of(40, 40))
    packed(batch_of(*[16] * 513))  # more than the largest
    packed(batch_of(5, 5)._replace(attended=np.array([5, 3])))  # which is attended to in runs
    assert sizes == [64, 128]


@pytest.mark.usefixtures("as_on_a_gpu")
def test_attention_is_told_the_longest_record(encoder: ConvBertModel, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []

    def noting(*args: Any) -> torch.Tensor:
        told.append(args[5])
        return varlen_reference(*args)

    monkeypatch.setattr(attention, "_at_once", lambda: noting)
    packed = PackedEncoder(encoder, device=CPU)
    packed(batch_of(16, 40, *[16] * 512))  # as it is
    assert set(told) == {40}
    told.clear()
    packed(batch_of(16, 40))  # filled up
    assert set(told) == {encoder.config.max_position_embeddings}


def test_a_processor_records_nothing(encoder: ConvBertModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Graphs, "run", None)  # a call of it fails
    assert PackedEncoder(encoder, device=CPU)(batch_of(3)).shape == (3, encoder.config.hidden_size)


@pytest.mark.usefixtures("as_on_a_gpu")
def test_an_engine_leaves_memory_when_it_is_dropped(encoder: ConvBertModel) -> None:
    engine = Engine(encoder, {"each": EachToken(torch.nn.Identity())})
    engine(batch_of(3))
    gone = weakref.ref(engine.encoder)
    engine.encoder._graphs._recordings.clear()  # whose stand-ins hold the function, as graphs do not
    del engine
    assert gone() is None


def test_a_recorded_batch_has_room_for_its_records() -> None:
    assert all(size % TOKENS_A_RECORD == 0 for size in SIZES)
