"""What only a GPU can show: its own kernels, its memory, and that nothing waits for it or compiles anew."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import convbert
from convbert import ConvBertForMaskedLM, ConvBertForSequenceClassification
from convbert.engine import (
    EachToken,
    Engine,
    FirstToken,
    Head,
    Packed,
    Pooled,
    PseudoLikelihood,
    TokensWithId,
    WholeRecord,
    attention,
)
from convbert.engine.packing import MOST_RECORDS
from tests.conftest import VOCAB, save_checkpoint

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")

PRECISIONS = [("fp32", 1e-4), ("bf16", 0.2), ("fp16", 0.02)]
SHAPES = [
    {},
    {"num_groups": 2, "embedding_size": 32},
    {"hidden_size": 96, "num_attention_heads": 4, "embedding_size": 96},  # heads of 24
    {"head_ratio": 1, "conv_kernel_size": 3, "hidden_act": "relu"},
    {"head_ratio": 8, "conv_kernel_size": 11, "hidden_act": "gelu_new"},
    {"num_attention_heads": 8, "head_ratio": 4, "conv_kernel_size": 1, "type_vocab_size": 3},
    {"hidden_size": 24, "num_attention_heads": 4, "embedding_size": 24},  # heads of 6: no kernel attends at once
]
MASK = VOCAB.index("[MASK]")
LENGTHS = [5, 17, 5, 80, 1, 2, 17, 40, 128]


def packed(lengths: list[int], *, n_types: int = 0) -> Packed:
    rng = np.random.default_rng(0)
    types = rng.integers(0, n_types, sum(lengths)) if n_types else None
    return Packed(rng.integers(1, len(VOCAB), sum(lengths)), np.concatenate([[0], np.cumsum(lengths)]), types)


def assert_close(found: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    assert expected.std() > 0
    np.testing.assert_allclose(found, expected, atol=tolerance * np.abs(expected).max())


@pytest.fixture(autouse=True)
def nothing_runs_as_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Triton or a recording fails, so does the test."""
    monkeypatch.setattr("convbert.engine.compiler.logger.warning", None)
    monkeypatch.setattr("convbert.engine.graphs.logger.warning", None)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ConvBertForSequenceClassification:
    return ConvBertForSequenceClassification.from_pretrained(save_checkpoint(tmp_path_factory.mktemp("gpu")))


def heads_of(model: convbert.models.PreTrainedModel) -> dict[str, Head | PseudoLikelihood]:
    """One of every kind."""
    torch.manual_seed(3)
    width = model.config.hidden_size
    return {
        "first": FirstToken(nn.Linear(width, 3)),
        "each": EachToken(nn.Linear(width, 2)),
        "masks": TokensWithId(nn.Linear(width, 5), token_id=MASK),
        "mean": Pooled("mean"),
        "max": Pooled("max"),
        "whole": WholeRecord(nn.Sequential(nn.Flatten(2), Mean(), nn.Linear(width, 4))),
        "likelihood": PseudoLikelihood(nn.Linear(width, len(VOCAB)), mask_id=MASK, unscored=frozenset({2, 3})),
    }


class Mean(nn.Module):
    """(R, L, H) -> (R, H)."""

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return states.mean(1)


@pytest.mark.parametrize(("precision", "tolerance"), PRECISIONS)
@pytest.mark.parametrize("changes", SHAPES, ids=str)
def test_every_head_gives_what_it_gives_on_the_processor(
    changes: dict[str, object], precision: str, tolerance: float, tmp_path: Path
) -> None:
    model = ConvBertForSequenceClassification.from_pretrained(save_checkpoint(tmp_path, **changes))
    heads, batch = heads_of(model), packed(LENGTHS, n_types=model.config.type_vocab_size)
    expected = Engine(model.base_model, heads)(batch)
    for budget in (None, 64):
        engine = Engine(model.base_model, heads, device="cuda", precision=precision, max_batch_tokens=budget)
        found = engine(batch)
        for name, rows in expected.items():
            np.testing.assert_array_equal(found[name].offsets, rows.offsets)
            assert_close(found[name].values, rows.values, tolerance)


@pytest.mark.parametrize(("precision", "tolerance"), PRECISIONS)
def test_unattended_tokens_are_what_they_are_on_the_processor(
    model: ConvBertForSequenceClassification, precision: str, tolerance: float
) -> None:
    batch = packed([12, 12, 12, 7, 7, 12])._replace(attended=np.array([12, 5, 5, 7, 1, 9]))
    heads = {"each": EachToken(nn.Identity())}
    expected = Engine(model.base_model, heads)(batch)["each"].values
    found = Engine(model.base_model, heads, device="cuda", precision=precision)(batch)["each"].values
    assert_close(found, expected, tolerance)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_all_records_are_attended_to_at_once(
    model: ConvBertForSequenceClassification, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if attention._at_once() is None:
        pytest.skip("torch has it from 2.10 on")
    engine = Engine(model.base_model, {"first": FirstToken(model.classifier)}, device="cuda", precision=precision)
    monkeypatch.setattr("convbert.engine.encoder.attend_runs", None)  # a call of it fails
    assert np.isfinite(engine(packed(LENGTHS))["first"].values).all()


@pytest.mark.parametrize(("precision", "tolerance"), PRECISIONS[1:])
@pytest.mark.parametrize("changes", SHAPES, ids=str)
def test_recorded_batches_are_what_they_are_as_written(
    changes: dict[str, object], precision: str, tolerance: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if attention._at_once() is None:
        pytest.skip("torch has what it needs from 2.10 on")
    model = ConvBertForSequenceClassification.from_pretrained(save_checkpoint(tmp_path, **changes))
    engine = Engine(model.base_model, heads_of(model), device="cuda", precision=precision)
    n_types = model.config.type_vocab_size
    batches = [packed(lengths, n_types=n_types) for lengths in ([1], LENGTHS, [5, 3], [128] * 60, [7] * 100, [2])]
    found = [engine(batch) for batch in batches]
    again = [engine(batch) for batch in batches]
    if engine.encoder._has_attention_kernel:
        assert set(engine.encoder._graphs._recordings) >= {64, 512, 2048, 8192}
    monkeypatch.setattr("convbert.engine.encoder.size_of", lambda *counts: None)
    for batch, results, second in zip(batches, found, again, strict=True):
        for name, expected in engine(batch).items():
            if expected.values.size > 1:
                assert_close(results[name].values, expected.values, tolerance / 2)
            assert results[name].values.tobytes() == second[name].values.tobytes(), name


@pytest.mark.parametrize(("precision", "tolerance"), PRECISIONS)
def test_a_record_beside_others_is_what_it_is_alone(
    model: ConvBertForSequenceClassification, precision: str, tolerance: float
) -> None:
    heads = {"each": EachToken(nn.Identity())}
    engine = Engine(model.base_model, heads, device="cuda", precision=precision)
    batch = packed(LENGTHS)
    together = engine(batch)["each"]
    for record, (first, last) in enumerate(zip(batch.offsets, batch.offsets[1:], strict=False)):
        alone = engine(batch.take(np.array([record])))["each"].values
        assert_close(alone, together.values[first:last], tolerance / 2)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_the_same_records_give_the_same_bytes(model: ConvBertForSequenceClassification, precision: str) -> None:
    heads = heads_of(model)
    batch = packed(LENGTHS * 20)
    engine = Engine(model.base_model, heads, device="cuda", precision=precision, max_batch_tokens=2048)
    again = Engine(model.base_model, heads, device="cuda", precision=precision, max_batch_tokens=2048)
    expected = engine(batch)
    for found in (engine(batch), again(batch)):
        for name, rows in expected.items():
            assert found[name].values.tobytes() == rows.values.tobytes(), name


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_record_that_is_no_number_leaves_those_beside_it(precision: str, tmp_path: Path) -> None:
    model = ConvBertForSequenceClassification.from_pretrained(save_checkpoint(tmp_path))
    with torch.no_grad():
        model.base_model.embeddings.word_embeddings.weight[7] = torch.inf
    engine = Engine(model.base_model, {"each": EachToken(nn.Identity())}, device="cuda", precision=precision)
    rows = engine(Packed(np.array([8, 9, 7, 10, 11, 12]), np.array([0, 2, 4, 6])))["each"].values
    assert not np.isfinite(rows[2:4]).any()
    assert np.isfinite(rows[[0, 1, 4, 5]]).all()


def test_as_many_records_as_a_micro_batch_may_hold(model: ConvBertForSequenceClassification) -> None:
    n_records = MOST_RECORDS + 10
    batch = Packed(np.full(n_records, 9), np.arange(n_records + 1))
    engine = Engine(
        model.base_model,
        {"first": FirstToken(model.classifier)},
        device="cuda",
        precision="bf16",
        max_batch_tokens=2**20,
    )
    rows = engine(batch)["first"].values
    expected = Engine(model.base_model, {"first": FirstToken(model.classifier)})(batch.take(np.array([0])))
    assert_close(rows, np.repeat(expected["first"].values, n_records, axis=0), 0.05)


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")  # which torch warns of once
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_nothing_waits_for_the_gpu_before_the_results_are_fetched(
    model: ConvBertForSequenceClassification, precision: str
) -> None:
    heads = {name: head for name, head in heads_of(model).items() if isinstance(head, Head)}
    engine = Engine(model.base_model, heads, device="cuda", precision=precision, max_batch_tokens=1024)
    batch = packed(LENGTHS)
    engine(batch)
    try:
        torch.cuda.set_sync_debug_mode("error")
        with torch.inference_mode():
            engine._run(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_nothing_is_compiled_when_work_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    knobs = pytest.importorskip("triton.knobs")
    compiled: list[object] = []
    monkeypatch.setattr(knobs.runtime, "jit_cache_hook", lambda **kernel: compiled.append(kernel))
    shape = {"hidden_size": 56, "num_attention_heads": 4, "embedding_size": 56}  # of no other test
    model = ConvBertForSequenceClassification.from_pretrained(save_checkpoint(tmp_path, **shape))
    heads = {"first": FirstToken(nn.Linear(56, 3)), "each": EachToken(nn.Linear(56, 2))}
    engine = Engine(model.base_model, heads, device="cuda", precision="bf16")
    assert compiled
    compiled.clear()
    for lengths in (LENGTHS, [1], [2], [128] * 40, [3, 1], [7] * 1000):
        engine(packed(lengths))
    engine(packed([5, 7])._replace(attended=np.array([5, 3])))
    assert not compiled


@pytest.fixture
def little_memory() -> Iterator[None]:
    """The process may take 256 MiB more of the GPU than it has."""
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 2**28) / total)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.mark.usefixtures("little_memory")
def test_too_large_a_budget_is_halved_until_it_fits(model: ConvBertForSequenceClassification) -> None:
    heads = {"first": FirstToken(model.classifier)}
    batch = packed([128] * 8000)
    engine = Engine(model.base_model, heads, device="cuda", precision="fp32", max_batch_tokens=2**20)
    found = engine(batch)["first"].values
    assert engine.max_batch_tokens < 2**20
    few = batch.take(np.arange(10))
    assert_close(found[:10], Engine(model.base_model, heads)(few)["first"].values, 1e-4)


def test_the_budget_that_is_found_fits(tmp_path: Path) -> None:
    model = ConvBertForMaskedLM.from_pretrained(save_checkpoint(tmp_path, architecture="ConvBertForMaskedLM"))
    engine = Engine(model.base_model, {"each": EachToken(nn.Linear(32, 2))}, device="cuda", precision="bf16")
    budget = engine.max_batch_tokens
    assert budget >= 4096
    assert engine(packed([128] * (budget // 128 + 1)))["each"].values.shape == ((budget // 128 + 1) * 128, 2)
    assert engine.max_batch_tokens == budget
