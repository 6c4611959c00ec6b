"""Every kind of head on the packed encoder, against Transformers record by record."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from torch import nn

import convbert
from convbert.engine import (
    EachToken,
    Engine,
    Head,
    Likeliest,
    Packed,
    Pooled,
    Probabilities,
    PseudoLikelihood,
    Rows,
    TokensWithId,
    WholeRecord,
)
from tests.conftest import tiny_config

LENGTHS = [5, 17, 5, 80, 1, 2, 17, 40]
MASK = 4


def packed(lengths: list[int]) -> Packed:
    rng = np.random.default_rng(0)
    return Packed(rng.integers(3, 60, sum(lengths)), np.concatenate([[0], np.cumsum(lengths)]))


def records(batch: Packed) -> list[torch.Tensor]:
    return [torch.tensor(batch.input_ids[a:b])[None] for a, b in zip(batch.offsets, batch.offsets[1:], strict=False)]


@pytest.fixture
def pair(tmp_path: Path) -> Callable[[str], tuple[transformers.PreTrainedModel, convbert.models.PreTrainedModel]]:
    """The same random weights as Transformers' class and as ours."""

    def make(name: str) -> tuple[transformers.PreTrainedModel, convbert.models.PreTrainedModel]:
        torch.manual_seed(2)
        theirs = getattr(transformers, name)(tiny_config(num_labels=2)).eval()
        theirs.save_pretrained(tmp_path / name)
        return theirs, getattr(convbert, name).from_pretrained(tmp_path / name)

    return make


def rows_of(result: Rows) -> list[np.ndarray]:
    return [result.values[a:b] for a, b in zip(result.offsets, result.offsets[1:], strict=False)]


def assert_equal(result: Rows, expected: list[np.ndarray]) -> None:
    assert len(result.offsets) == len(expected) + 1
    for ours, theirs in zip(rows_of(result), expected, strict=True):
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize("budget", [1, 30, 10**6])
def test_each_token_gets_its_row(pair, budget: int) -> None:
    theirs, ours = pair("ConvBertForTokenClassification")
    batch = packed(LENGTHS)
    engine = Engine(ours.base_model, {"head": EachToken(ours.classifier)}, max_batch_tokens=budget)
    with torch.inference_mode():
        assert_equal(engine(batch)["head"], [theirs(record).logits[0].numpy() for record in records(batch)])


def test_masked_tokens_get_a_row_each_and_records_without_one_none(pair) -> None:
    theirs, ours = pair("ConvBertForMaskedLM")
    batch = packed(LENGTHS)
    batch.input_ids[[1, 30, 31, 60, -1]] = MASK
    module = nn.Sequential(ours.generator_predictions, ours.generator_lm_head)
    engine = Engine(ours.base_model, {"head": TokensWithId(module, token_id=MASK)}, max_batch_tokens=50)
    with torch.inference_mode():
        expected = [theirs(record).logits[0][record[0] == MASK].numpy() for record in records(batch)]
    assert {len(rows) for rows in expected} > {0, 1}
    assert_equal(engine(batch)["head"], expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_likeliest_are_the_first_of_equals(dtype: torch.dtype) -> None:
    logits = torch.randn(40, 3000, generator=torch.Generator().manual_seed(0)).to(dtype) * 5  # bf16: equals everywhere
    logits[0] = 1.0
    logits[1], logits[1, 7] = -200.0, 0.0  # the others are 0, and equal
    probabilities = logits.float().softmax(-1).numpy()
    order = np.argsort(-probabilities, axis=1, kind="stable")
    for k in (1, 2, 7, 100):
        found = Likeliest(k)(logits).numpy()
        np.testing.assert_array_equal(found[:, k:], order[:, :k])
        np.testing.assert_array_equal(found[:, :k], np.take_along_axis(probabilities, order[:, :k], axis=1))


@pytest.mark.parametrize("kind", ["mean", "max"])
def test_pooling_counts_the_tokens_it_is_told_to(pair, kind: str) -> None:
    theirs, ours = pair("ConvBertModel")
    batch = packed(LENGTHS)
    counted = np.array([[0, n] if n < 17 else [3, n - 2] for n in LENGTHS])
    pool = {"mean": lambda hidden: hidden.mean(0), "max": lambda hidden: hidden.max(0).values}[kind]
    with torch.inference_mode():
        hidden = [theirs(record).last_hidden_state[0] for record in records(batch)]
    engine = Engine(ours, {"head": Pooled(kind)}, max_batch_tokens=60)
    assert_equal(engine(batch)["head"], [pool(states).numpy()[None] for states in hidden])
    some = [pool(states[a:b]).numpy()[None] for states, (a, b) in zip(hidden, counted, strict=True)]
    assert_equal(engine(batch._replace(counted=counted))["head"], some)


@pytest.mark.parametrize("way", ["a processor's", "a GPU's"])
def test_unattended_tokens_are_what_padding_is_in_transformers(pair, way: str, request: pytest.FixtureRequest) -> None:
    if way == "a GPU's":
        request.getfixturevalue("as_on_a_gpu")
    theirs, ours = pair("ConvBertForMultipleChoice")
    lengths, attended = [12, 12, 12, 7, 7, 12], np.array([12, 5, 5, 7, 1, 9])
    batch = packed(lengths)._replace(attended=attended)
    expected = []
    for record, n in zip(records(batch), attended, strict=True):
        mask = (torch.arange(record.shape[1]) < n).long()[None]
        with torch.inference_mode():
            expected.append(theirs(record[:, None], attention_mask=mask[:, None]).logits.numpy())
    head = WholeRecord(nn.Sequential(ours.sequence_summary, ours.classifier))
    for budget in (1, 25, 1000):
        assert_equal(Engine(ours.base_model, {"head": head}, max_batch_tokens=budget)(batch)["head"], expected)


def test_pseudo_likelihood_hides_each_token_in_turn(pair) -> None:
    theirs, ours = pair("ConvBertForMaskedLM")
    batch = packed([5, 9, 1, 5])
    counted = np.array([[0, 5], [2, 7], [0, 1], [0, 5]])
    unscored = frozenset({int(batch.input_ids[0]), int(batch.input_ids[8])})

    def expected(first: int, last: int, ids: torch.Tensor) -> list[float]:
        places = [place for place in range(first, last) if int(ids[0, place]) not in unscored]
        total = 0.0
        for place in places:
            hidden = ids.clone()
            hidden[0, place] = MASK
            with torch.inference_mode():
                total += float(theirs(hidden).logits[0, place].log_softmax(-1)[ids[0, place]])
        return [total, len(places)]

    module = nn.Sequential(ours.generator_predictions, ours.generator_lm_head)
    head = PseudoLikelihood(module, mask_id=MASK, unscored=unscored)
    for budget in (1, 20, 1000):
        engine = Engine(ours.base_model, {"head": head}, max_batch_tokens=budget)
        result = engine(batch._replace(counted=counted))["head"].values
        truth = [expected(a, b, ids) for (a, b), ids in zip(counted, records(batch), strict=True)]
        np.testing.assert_allclose(result, truth, rtol=1e-4, atol=1e-4)
    assert len({row[1] for row in truth}) > 2


@pytest.mark.parametrize("architecture", ["ConvBertForMaskedLM", "ConvBertForTokenClassification"])
def test_records_may_be_a_stretch_of_others(pair, architecture: str) -> None:
    """As an Arrow list array that was sliced: its offsets begin anywhere, and tokens follow the last."""
    _, ours = pair(architecture)
    whole = packed([5, 9, 1, 5, 7])
    types, counted = whole.input_ids % 2, np.array([[1, 8], [0, 1], [2, 4]])
    slice_of = Packed(whole.input_ids, whole.offsets[1:5], types, counted=counted)
    own = Packed(whole.input_ids[5:20], np.array([0, 9, 10, 15]), types[5:20], counted=counted)
    if architecture == "ConvBertForMaskedLM":
        module = nn.Sequential(ours.generator_predictions, ours.generator_lm_head)
        head: nn.Module = PseudoLikelihood(module, mask_id=MASK, unscored=frozenset())
    else:
        head = EachToken(ours.classifier)
    engine = Engine(ours.base_model, {"head": head})
    expected, found = engine(own)["head"], engine(slice_of)["head"]
    np.testing.assert_array_equal(found.values, expected.values)
    np.testing.assert_array_equal(found.offsets, expected.offsets)
    assert expected.values.std() > 0


def test_all_heads_share_one_pass(pair, batches_of: Callable[..., list[int]]) -> None:
    _, ours = pair("ConvBertForTokenClassification")
    sizes = batches_of()
    heads: dict[str, Head] = {"a": EachToken(ours.classifier), "b": Pooled("mean"), "c": EachToken(ours.classifier)}
    results = Engine(ours.base_model, heads)(packed([4, 9]))
    assert sizes == [13]
    assert sorted(results) == ["a", "b", "c"]


def test_probabilities_of_rounded_logits_are_not_rounded_again() -> None:
    logits = torch.tensor([[1.0, 2.5, -3.0]], dtype=torch.bfloat16)
    found = Probabilities()(logits)
    torch.testing.assert_close(found, logits.float().softmax(-1), rtol=0, atol=0)
