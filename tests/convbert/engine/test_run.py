from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from convbert import ConvBertForMaskedLM, ConvBertForSequenceClassification, ConvBertModel, InputError
from convbert.engine import (
    EachToken,
    Engine,
    FirstToken,
    Packed,
    PackedEncoder,
    Pooled,
    PseudoLikelihood,
    TokensWithId,
    is_out_of_memory,
)
from convbert.engine.transfer import Arriving
from tests.conftest import VOCAB, save_checkpoint, tiny_config

Batches = Callable[..., list[int]]

SHAPES = [
    {},
    {"num_groups": 2, "embedding_size": 32},
    {"head_ratio": 1, "conv_kernel_size": 3},
    {"head_ratio": 8, "conv_kernel_size": 11, "hidden_act": "gelu_new"},
    {"num_attention_heads": 8, "head_ratio": 4, "conv_kernel_size": 1, "type_vocab_size": 3},
]
LENGTHS = [1, 512, 3, 3, 3, 7, 100, 2, 511, 1, 50, 50]


def packed(lengths: list[int], vocab_size: int, *, n_types: int = 0) -> Packed:
    rng = np.random.default_rng(0)
    types = rng.integers(0, n_types, sum(lengths)) if n_types else None
    return Packed(rng.integers(1, vocab_size, sum(lengths)), np.concatenate([[0], np.cumsum(lengths)]), types)


def alone(model: transformers.PreTrainedModel, batch: Packed) -> np.ndarray:
    """Transformers' logits of each record, run alone and unpadded."""
    rows = []
    for start, stop in zip(batch.offsets, batch.offsets[1:], strict=False):
        types = None if batch.token_type_ids is None else torch.tensor(batch.token_type_ids[start:stop])[None]
        with torch.inference_mode():
            rows.append(model(torch.tensor(batch.input_ids[start:stop])[None], token_type_ids=types).logits[0].numpy())
    return np.stack(rows)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("changes", [{}, {"embedding_size": 32}], ids=str)
def test_precision_is_the_engines_whatever_autocast_its_caller_is_in(
    changes: dict[str, int], precision: str, tmp_path: Path
) -> None:
    """Which is a thread's own, and rounds what kernels read as float32."""
    torch.manual_seed(2)
    config = tiny_config(max_position_embeddings=512, **changes)
    transformers.ConvBertModel(config).save_pretrained(tmp_path)
    model = ConvBertModel.from_pretrained(tmp_path)
    heads = {"mean": Pooled("mean"), "dense": EachToken(torch.nn.Linear(32, 5))}
    scorer = PseudoLikelihood(torch.nn.Linear(32, len(VOCAB)), mask_id=4, unscored=frozenset())
    batch = packed(LENGTHS[4:9], len(VOCAB))

    def rows(batch: Packed) -> dict[str, np.ndarray]:
        engine = Engine(model, {**heads, "likelihood": scorer}, precision=precision, max_batch_tokens=200)
        return {name: rows.values for name, rows in engine(batch).items()}

    for records in (batch, batch.take(np.array([0]))):
        expected = rows(records)
        with torch.autocast("cpu"):
            found = rows(records)
        for name in ("mean", "dense", "likelihood"):
            np.testing.assert_array_equal(found[name], expected[name])


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_an_engine_computes_on_its_own_device_whatever_the_default_is(precision: str, checkpoint: Path) -> None:
    model = ConvBertModel.from_pretrained(checkpoint)
    masks = TokensWithId(torch.nn.Linear(32, 5), token_id=4)
    engine = Engine(model, {"first": FirstToken(), "mean": Pooled("mean"), "masks": masks}, precision=precision)
    batch = packed([3, 7, 30, 7], len(VOCAB))
    expected = {name: rows.values for name, rows in engine(batch).items()}
    with torch.device("meta"):
        found = {name: rows.values for name, rows in engine(batch).items()}
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values)


@pytest.mark.parametrize("changes", SHAPES, ids=str)
def test_any_mixture_gives_each_record_its_own_result(changes: dict[str, object], tmp_path: Path) -> None:
    torch.manual_seed(2)
    config = tiny_config(max_position_embeddings=512, num_labels=3, **changes)
    oracle = transformers.ConvBertForSequenceClassification(config).eval()
    oracle.save_pretrained(tmp_path)
    model = ConvBertForSequenceClassification.from_pretrained(tmp_path)
    batch = packed(LENGTHS, config.vocab_size, n_types=config.type_vocab_size)
    expected = alone(oracle, batch)
    assert expected.std() > 0.05  # or else the comparison would mean little
    for budget in (1, 64, 10**6):
        engine = Engine(model.base_model, {"head": FirstToken(model.classifier)}, max_batch_tokens=budget)
        np.testing.assert_allclose(engine(batch)["head"].values, expected, atol=1e-4)


def test_the_encoder_gives_the_wanted_states_and_zeros(checkpoint: Path) -> None:
    model = ConvBertForSequenceClassification.from_pretrained(checkpoint).base_model
    encoder = PackedEncoder(model, device=torch.device("cpu"))
    batch, wanted = packed([5, 17, 5], 60), np.array([0, 4, 5, 26])
    some, every = encoder(batch, wanted), encoder(batch)
    torch.testing.assert_close(some[wanted], every[wanted])
    assert every[6].abs().max() > 0
    assert not some[np.setdiff1d(np.arange(27), wanted)].any()


def test_padding_would_change_the_result_in_transformers(checkpoint: Path) -> None:
    """Why the engine exists: the oracle itself depends on what follows a text."""
    model = transformers.ConvBertForSequenceClassification.from_pretrained(checkpoint).eval()
    ids = torch.randint(5, 60, (1, 6), generator=torch.Generator().manual_seed(0))
    padded = torch.cat([ids, torch.zeros(1, 4, dtype=torch.long)], dim=1)
    mask = torch.tensor([[1] * 6 + [0] * 4])
    with torch.inference_mode():
        assert (model(ids).logits - model(padded, attention_mask=mask).logits).abs().max() > 1e-3


def test_the_same_records_give_the_same_bytes(checkpoint: Path) -> None:
    model = ConvBertForSequenceClassification.from_pretrained(checkpoint)
    engine = Engine(model.base_model, {"head": FirstToken(model.classifier)}, max_batch_tokens=64)
    batch = packed([5, 17, 5, 80, 1], 60)
    assert engine(batch)["head"].values.tobytes() == engine(batch)["head"].values.tobytes()


@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 0.05), ("fp16", 0.005), ("int8", 0.1)])
@pytest.mark.parametrize("changes", [{}, {"num_groups": 2, "embedding_size": 32}], ids=str)
def test_every_precision_stays_close_and_gives_each_record_its_own(
    changes: dict[str, int], precision: str, tolerance: float, tmp_path: Path
) -> None:
    torch.manual_seed(2)
    oracle = transformers.ConvBertForSequenceClassification(tiny_config(num_labels=3, **changes)).eval()
    oracle.save_pretrained(tmp_path)
    model = ConvBertForSequenceClassification.from_pretrained(tmp_path)
    batch = packed([5, 17, 5, 80, 1, 17, 33], 60)
    expected = alone(oracle, batch)

    def run(records: Packed, budget: int) -> np.ndarray:
        engine = Engine(
            model.base_model, {"head": FirstToken(model.classifier)}, precision=precision, max_batch_tokens=budget
        )
        return engine(records)["head"].values

    together = run(batch, 1000)
    assert together.dtype == np.float32
    spread = np.abs(expected).max()
    np.testing.assert_allclose(together, expected, atol=tolerance * spread)
    apart = {"int8": 1e-4, "fp16": 1e-3}.get(precision, tolerance / 2)  # an int8 token has scales of its own
    np.testing.assert_allclose(together, run(batch, 1), atol=apart * spread)
    np.testing.assert_allclose(together[3:4], run(batch.take(np.array([3])), 1000), atol=apart * spread)
    assert np.abs(together - expected).max() > 1e-6  # or else it was not that precision


def test_the_engine_leaves_the_model_as_it_is(checkpoint: Path) -> None:
    model = ConvBertForSequenceClassification.from_pretrained(checkpoint)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    Engine(model.base_model, {"head": FirstToken(model.classifier)}, precision="bf16")(packed([4, 2], 60))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_bad_input_is_named(checkpoint: Path) -> None:
    model = ConvBertForSequenceClassification.from_pretrained(checkpoint)
    with pytest.raises(InputError, match=r"encoder \(ConvBertForSequenceClassification\) must be .*model.base_model"):
        Engine(model, {"head": FirstToken(model.classifier)})  # type: ignore[arg-type]
    with pytest.raises(InputError, match="max_batch_tokens"):
        Engine(model.base_model, {}, max_batch_tokens=0)
    with pytest.raises(InputError, match="precision"):
        Engine(model.base_model, {}, precision="fp8")
    with pytest.raises(InputError, match=r"head 'topic' \(ClassificationHead\) must say what it reads: wrap it"):
        Engine(model.base_model, {"topic": model.classifier})  # type: ignore[dict-item]
    engine = Engine(model.base_model, {"head": FirstToken(model.classifier)})
    with pytest.raises(InputError, match="129 tokens, more than max_position_embeddings"):
        engine(packed([129], 60))
    with pytest.raises(InputError, match="there are no records to run: give at least one"):
        engine(Packed(np.array([], np.int64), np.array([0])))
    with pytest.raises(InputError, match="record 0 of the batch has no tokens"):
        engine(Packed(np.array([], np.int64), np.array([0, 0])))
    for attended in ([0, 3], [-1, 3], [4, 4]):
        with pytest.raises(InputError, match="attended must say at least 1 and at most all"):
            engine(packed([4, 3], 60)._replace(attended=np.array(attended)))
    masks = Engine(model.base_model, {"masks": TokensWithId(model.classifier.dense, token_id=4)})
    with pytest.raises(InputError, match="record 1 of the batch has no tokens"):
        masks(Packed(np.array([4, 5]), np.array([0, 2, 2])))


def test_lists_are_taken_as_arrays_are(checkpoint: Path) -> None:
    model = ConvBertForSequenceClassification.from_pretrained(checkpoint)
    engine = Engine(model.base_model, {"first": FirstToken(model.classifier), "mean": Pooled("mean")})
    fields = [8, 9, 7, 10, 11], [1, 3, 5], [0, 0, 1, 1, 0], [2, 1], [[0, 1], [1, 2]]
    rows, expected = engine(Packed(*fields)), engine(Packed(*map(np.array, fields)))  # type: ignore[arg-type]
    for name in rows:
        np.testing.assert_array_equal(rows[name].values, expected[name].values)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("input_ids", np.arange(5, 17).reshape(2, 6), r"input_ids has the shape \(2, 6\) .* of the shape \(12,\)"),
        ("input_ids", np.arange(5, 17) + 0.7, "input_ids has .* the type float64: give whole numbers"),
        ("offsets", np.array([[0, 5, 12]]), "offsets has the shape"),
        ("offsets", np.array([0, 5, 13]), r"offsets must rise from at least 0 to at most the .* \(12\)"),
        ("offsets", np.array([-3, 5, 12]), "offsets must rise"),
        ("offsets", np.array([0, 7, 5], np.uint8), "offsets must rise"),
        ("token_type_ids", np.zeros(7, np.int64), r"token_type_ids has the shape \(7,\) .* of the shape \(12,\)"),
        ("token_type_ids", np.zeros(13, np.int64), "token_type_ids has the shape"),
        ("attended", np.array([3]), r"attended has the shape \(1,\) .* of the shape \(2,\)"),
        ("attended", np.array([3.5, 3.5]), "attended has .* the type float64"),
        ("counted", np.array([[0, 5]]), r"counted has the shape \(1, 2\) .* of the shape \(2, 2\)"),
        ("counted", np.array([[0, 6], [0, 7]]), "counted says 0 to 6 of the 5 tokens of record 0"),
        ("counted", np.array([[0, 5], [-1, 7]]), "counted says -1 to 7 of the 7 tokens of record 1"),
        ("counted", np.array([[0, 5], [4, 3]]), "counted says 4 to 3 of the 7 tokens of record 1"),
    ],
)
def test_fields_that_would_read_a_neighbours_tokens_are_named(
    field: str, value: np.ndarray, message: str, checkpoint: Path
) -> None:
    model = ConvBertForSequenceClassification.from_pretrained(checkpoint)
    engine = Engine(model.base_model, {"first": FirstToken(model.classifier), "mean": Pooled("mean")})
    batch = packed([5, 7], 60)._replace(counted=np.array([[0, 5], [3, 7]]))
    assert np.isfinite(engine(batch)["mean"].values).all()
    with pytest.raises(InputError, match=message):
        engine(batch._replace(**{field: value}))


@pytest.mark.parametrize(
    ("ids", "types", "message"),
    [
        ([5, len(VOCAB)], [0, 0], rf"input_ids reaches from 5 to {len(VOCAB)}, but vocab_size \({len(VOCAB)}\) allows"),
        ([-1, 6], [0, 0], r"input_ids reaches from -1 to 6, but vocab_size"),
        ([5, 6], [0, 2], r"token_type_ids reaches from 0 to 2, but type_vocab_size \(2\) allows 0 to 1"),
        ([5, 6], [-1, 1], r"token_type_ids reaches from -1 to 1, but type_vocab_size"),
    ],
)
def test_ids_outside_their_table_never_reach_the_device(
    ids: list[int], types: list[int], message: str, checkpoint: Path, batches_of: Batches
) -> None:
    model = ConvBertForSequenceClassification.from_pretrained(checkpoint)
    engine = Engine(model.base_model, {"head": FirstToken(model.classifier)})
    sizes = batches_of()
    with pytest.raises(InputError, match=message):
        engine(Packed(np.array(ids), np.array([0, 2]), np.array(types)))
    assert sizes == []


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16", "int8"])
def test_a_record_that_is_no_number_leaves_those_beside_it(precision: str, checkpoint: Path) -> None:
    model = ConvBertForSequenceClassification.from_pretrained(checkpoint)
    with torch.no_grad():
        model.base_model.embeddings.word_embeddings.weight[7] = torch.inf
    engine = Engine(model.base_model, {"head": EachToken(model.classifier.dense)}, precision=precision)
    batch = Packed(np.array([8, 9, 7, 10, 11, 12]), np.array([0, 2, 4, 6]))
    rows = engine(batch)["head"].values
    assert rows[2:4].shape == (2, 32)
    assert not np.isfinite(rows[2:4]).any()
    assert np.isfinite(rows[[0, 1, 4, 5]]).all()


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_engine_keeps_its_weights_when_the_models_change(precision: str, tmp_path: Path) -> None:
    """The model may be trained on while an engine of it answers."""
    folder = save_checkpoint(tmp_path, num_groups=2)
    model = ConvBertForSequenceClassification.from_pretrained(folder)
    engine = Engine(model.base_model, {"head": FirstToken(model.classifier)}, precision=precision)
    before = engine(packed([4, 2], 60))["head"].values
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(torch.nan)
    np.testing.assert_array_equal(engine(packed([4, 2], 60))["head"].values, before)


def test_out_of_memory_lowers_the_budget_for_good(checkpoint: Path, batches_of: Batches) -> None:
    oracle = transformers.ConvBertForSequenceClassification.from_pretrained(checkpoint).eval()
    model = ConvBertForSequenceClassification.from_pretrained(checkpoint)
    batch = packed([40, 7, 40, 7, 90, 1, 30, 12, 12], 60)
    engine = Engine(model.base_model, {"head": FirstToken(model.classifier)}, max_batch_tokens=200)
    sizes = batches_of(100)
    np.testing.assert_allclose(engine(batch)["head"].values, alone(oracle, batch), atol=1e-4)
    failed = [size for size in sizes if size > 100]
    assert failed == [200]  # 90, 40, 40, 30: halved once
    assert engine.max_batch_tokens == 100
    assert sum(sizes) - sum(failed) == len(batch.input_ids)  # nothing that was finished is repeated
    sizes.clear()
    engine(batch)
    assert max(sizes) <= 100


def test_a_record_without_room_is_an_error_that_leaves_the_budget(checkpoint: Path, batches_of: Batches) -> None:
    model = ConvBertForSequenceClassification.from_pretrained(checkpoint)
    engine = Engine(model.base_model, {"head": FirstToken(model.classifier)}, max_batch_tokens=200)
    batches_of(89)
    with pytest.raises(torch.OutOfMemoryError):
        engine(packed([40, 90, 40], 60))
    assert engine.max_batch_tokens == 200
    assert len(engine(packed([40, 40, 40], 60))["head"].values) == 3
    assert engine.max_batch_tokens == 60


def test_scorers_lower_the_budget_too(tmp_path: Path, batches_of: Batches) -> None:
    model = ConvBertForMaskedLM.from_pretrained(save_checkpoint(tmp_path / "m", architecture="ConvBertForMaskedLM"))
    scorer = PseudoLikelihood(torch.nn.Linear(32, 60), mask_id=4, unscored=frozenset({2, 3}))
    batch = packed([9, 20, 4], 60)
    expected = Engine(model.base_model, {"score": scorer}, max_batch_tokens=200)(batch)["score"].values
    engine = Engine(model.base_model, {"score": scorer}, max_batch_tokens=200)
    batches_of(60)
    np.testing.assert_allclose(engine(batch)["score"].values, expected, rtol=1e-5)
    assert engine.max_batch_tokens == 50
    batches_of(19)
    with pytest.raises(torch.OutOfMemoryError):
        engine(batch)
    assert engine.max_batch_tokens == 50


def test_results_come_back_while_the_next_micro_batches_run(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = ConvBertForSequenceClassification.from_pretrained(checkpoint)
    engine = Engine(model.base_model, {"head": FirstToken(model.classifier)}, max_batch_tokens=10)
    expected = engine(packed([10, 9, 8, 7, 6], 60))["head"].values
    steps: list[str] = []
    run = Engine._run

    def started(self: Engine, batch: Packed) -> dict[str, torch.Tensor]:
        steps.append(f"run {len(batch.input_ids)}")
        return run(self, batch)

    class Watched(Arriving):
        def __init__(self, rows: torch.Tensor) -> None:
            super().__init__(rows)
            self.of = steps[-1].split()[1]
            steps.append(f"copy {self.of}")

        def wait(self) -> np.ndarray:
            steps.append(f"wait {self.of}")
            return super().wait()

    monkeypatch.setattr(Engine, "_run", started)
    monkeypatch.setattr("convbert.engine.run.Arriving", Watched)
    np.testing.assert_array_equal(engine(packed([10, 9, 8, 7, 6], 60))["head"].values, expected)
    assert steps[:7] == ["run 10", "copy 10", "run 9", "copy 9", "run 8", "copy 8", "wait 10"]
    assert steps[7:] == ["run 7", "copy 7", "wait 9", "run 6", "copy 6", "wait 8", "wait 7", "wait 6"]


def test_what_is_out_of_memory() -> None:
    with pytest.raises(RuntimeError) as cpu:
        torch.empty(2**60)
    assert is_out_of_memory(cpu.value)
    with pytest.raises(RuntimeError) as other:
        torch.ones(2) @ torch.ones(3)
    assert not is_out_of_memory(other.value)
    assert not is_out_of_memory(MemoryError())


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), True),
        (torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be reported"), True),
        (torch.AcceleratorError("CUDA error: device-side assert triggered"), False),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("Triton Error [CUDA]: out of memory"), True),
        (RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"), False),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`"), False),
    ],
    ids=repr,
)
def test_a_gpus_errors_are_told_apart(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) is expected


GROUPED = {"num_groups": 2, "hidden_act": "gelu_new", "embedding_size": 32}


@pytest.mark.parametrize(
    ("way", "changes", "precision", "tolerance"),
    [
        *(("as_on_a_gpu", changes, "fp32", 1e-4) for changes in ({}, GROUPED)),
        *(("as_on_a_gpu", changes, "bf16", 0.05) for changes in ({}, GROUPED)),
        *(("as_on_a_gpu", changes, "fp16", 0.005) for changes in ({}, GROUPED)),
        ("in_triton", GROUPED, "fp32", 1e-4),  # by its interpreter, which takes seconds
        ("in_triton", {}, "fp16", 0.005),
    ],
    ids=str,
)
def test_the_way_through_a_gpu_gives_each_record_its_own(
    changes: dict[str, object],
    way: str,
    precision: str,
    tolerance: float,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    request.getfixturevalue(way)
    torch.manual_seed(2)
    oracle = transformers.ConvBertForSequenceClassification(tiny_config(num_labels=3, **changes)).eval()
    oracle.save_pretrained(tmp_path)
    model = ConvBertForSequenceClassification.from_pretrained(tmp_path)
    batch = packed([5, 17, 5, 80, 1, 17, 33], 60)
    expected = alone(oracle, batch)
    for budget in (64,) if way == "in_triton" else (1, 64, 10**6):
        engine = Engine(
            model.base_model, {"head": FirstToken(model.classifier)}, precision=precision, max_batch_tokens=budget
        )
        atol = tolerance * np.abs(expected).max()
        np.testing.assert_allclose(engine(batch)["head"].values, expected, atol=atol)


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize(("budget", "expected"), [(None, [16_384, 2]), (300, [256, 2]), (1, [128, 2])])
def test_a_gpu_compiles_before_there_is_work(
    checkpoint: Path, batches_of: Batches, budget: int | None, expected: list[int]
) -> None:
    model = ConvBertForSequenceClassification.from_pretrained(checkpoint)
    sizes = batches_of()
    scorer = PseudoLikelihood(torch.nn.Linear(32, 60), mask_id=4, unscored=frozenset())
    for heads in ({"head": FirstToken(model.classifier)}, {"score": scorer}):
        sizes.clear()
        engine = Engine(model.base_model, heads, max_batch_tokens=budget)
        assert sizes == expected
        assert engine.max_batch_tokens == (budget or 1024)


@pytest.mark.usefixtures("as_on_a_gpu")
def test_a_gpu_without_room_to_warm_up_keeps_the_budget_it_is_given(checkpoint: Path, batches_of: Batches) -> None:
    model = ConvBertForSequenceClassification.from_pretrained(checkpoint)
    sizes = batches_of(100)
    engine = Engine(model.base_model, {"head": FirstToken(model.classifier)}, max_batch_tokens=300)
    assert (sizes, engine.max_batch_tokens) == ([256], 300)


def test_without_a_budget_the_device_decides(
    checkpoint: Path, batches_of: Batches, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ConvBertForSequenceClassification.from_pretrained(checkpoint)
    engine = Engine(model.base_model, {"head": FirstToken(model.classifier)})
    assert engine.max_batch_tokens == 1024
    runs: list[tuple[int, str]] = []

    def probed(run: Callable[[int, int], object], *, longest: int, device: torch.device) -> int:
        runs.append((longest, device.type))
        run(2, longest)
        return 4096

    monkeypatch.setattr("convbert.engine.run.probed_budget", probed)
    monkeypatch.setattr("convbert.engine.run.warm_up", lambda *args, **kwargs: None)
    engine.device = torch.device("cuda")  # of the probe alone: the encoder stays where it is
    assert engine._prepared(None) == 4096
    assert engine._prepared(64) == 64
    batches_of(200)
    assert engine._prepared(None) == 128  # no room for the probe: a record at a time
    assert runs == [(128, "cuda")] * 2


def test_another_error_of_the_probe_is_not_taken_for_too_little_memory(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ConvBertForSequenceClassification.from_pretrained(checkpoint)
    engine = Engine(model.base_model, {"head": FirstToken(model.classifier)})

    def broken(*args: object, **kwargs: object) -> int:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr("convbert.engine.run.probed_budget", broken)
    engine.device = torch.device("cuda")
    monkeypatch.setattr("convbert.engine.run.warm_up", lambda *args, **kwargs: None)
    with pytest.raises(torch.AcceleratorError, match="illegal memory access"):
        engine._prepared(None)
