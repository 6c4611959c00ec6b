"""Masked language modelling: words for each [MASK] out, or how likely a text is."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from convbert import ConvBertConfig, ConvBertTokenizer, engine
from convbert.engine.packing import offsets_of
from pipelines.columns import Column, Lists, Named, Names
from pipelines.encode import Inputs
from pipelines.errors import ModelError
from pipelines.figures import Histogram, numbers, shares
from pipelines.heads.base import Head, Results
from pipelines.spec import JobSpec

if TYPE_CHECKING:
    from convbert import ConvBertForMaskedLM

USUAL_WORDS = 5  # for a [MASK], where nobody says how many
_WORD = pa.struct(
    [
        pa.field("token", pa.string()),  # the word piece
        pa.field("score", pa.float32()),  # its probability
        pa.field("id", pa.int32()),  # its id in the vocabulary
    ]
)


class FillMask(Head):
    """The likeliest tokens for each [MASK]."""

    task = "fill-mask"
    architecture = "ConvBertForMaskedLM"
    settings = ("top_k", "pseudo_log_likelihood")
    needs_mask = True
    schema = pa.struct([pa.field("masks", pa.list_(pa.list_(_WORD)))])  # --top-k words for each [MASK], likeliest first

    def __init__(self, config: ConvBertConfig, tokenizer: ConvBertTokenizer, spec: JobSpec) -> None:
        self.inputs = Inputs("text", (spec.text_column,))
        self.labels = []
        self.mask_id = _mask_id(tokenizer)
        self.mask_token = tokenizer.mask_token
        self.truncation_side = tokenizer.truncation_side
        self.top_k = min(spec.top_k or USUAL_WORDS, config.vocab_size)
        self.words = _words(tokenizer, config.vocab_size)

    def on_encoder(self, model: ConvBertForMaskedLM) -> engine.Head:
        """Probability and id of the likeliest words, for each [MASK]."""
        return engine.TokensWithId(
            model.generator_predictions,
            model.generator_lm_head,
            engine.Likeliest(self.top_k),
            token_id=self.mask_id,
        )

    def narrowed(self, values: NDArray[np.float32], loaded: Head) -> NDArray[np.float32]:
        """(N, 2 · K) of more words -> (N, 2 · top_k)."""
        n_words = values.shape[1] // 2
        return np.concatenate([values[:, : self.top_k], values[:, n_words : n_words + self.top_k]], axis=1)

    def columns(self, results: Results) -> dict[str, Column]:
        """(N, 2 · top_k) for the N masks -> R lists of lists."""
        packed = results.sequences.packed
        is_counted = packed.is_counted[packed.input_ids == self.mask_id]
        values = results.values[is_counted]
        scores, ids = values[:, : self.top_k].ravel(), values[:, self.top_k :].ravel().astype(np.int32)
        words = {"token": Named(self.words, ids), "score": scores, "id": ids}
        of_masks = Lists(words, np.arange(0, len(ids) + 1, self.top_k))
        return {"masks": Lists(of_masks, offsets_of(is_counted)[results.offsets])}

    def counts(self, column: pa.StructArray) -> dict[str, int]:
        """Masks that were filled."""
        return {"masks": len(column.field("masks").flatten())}

    def scores(self, column: pa.StructArray) -> dict[str, Histogram]:
        """The probability of the likeliest word for each [MASK]."""
        return {"score": shares(pc.list_element(column.field("masks").flatten(), 0).field("score"))}


class PseudoLogLikelihood(Head):
    """How likely a text is, each of its tokens in turn behind [MASK] (Salazar et al. 2020)."""

    task = "fill-mask"
    architecture = "ConvBertForMaskedLM"
    settings = ("pseudo_log_likelihood",)
    schema = pa.struct(
        [
            # sum over the tokens of the logarithm of their probability
            pa.field("pseudo_log_likelihood", pa.float32()),
            # tokens that were scored: all but special ones
            pa.field("tokens", pa.int32()),
            # exp of minus their mean: low for a likely text; null without tokens
            pa.field("pseudo_perplexity", pa.float32()),
        ]
    )

    def __init__(self, config: ConvBertConfig, tokenizer: ConvBertTokenizer, spec: JobSpec) -> None:
        self.inputs = Inputs("text", (spec.text_column,))
        self.labels = []
        self.mask_id = _mask_id(tokenizer)
        self.unscored = frozenset(tokenizer.all_special_ids) - {tokenizer.unk_token_id}

    def on_encoder(self, model: ConvBertForMaskedLM) -> engine.PseudoLikelihood:
        """Sum and count of the scored tokens of each window."""
        return engine.PseudoLikelihood(
            model.generator_predictions, model.generator_lm_head, mask_id=self.mask_id, unscored=self.unscored
        )

    def columns(self, results: Results) -> dict[str, Column]:
        """(S, 2) -> R values each."""
        total, count = np.add.reduceat(results.values.astype(np.float64), results.offsets[:-1], axis=0).T
        perplexity = np.exp(-total / np.maximum(count, 1))
        return {
            "pseudo_log_likelihood": total.astype(np.float32),
            "tokens": count.astype(np.int32),
            "pseudo_perplexity": np.ma.array(perplexity.astype(np.float32), mask=count == 0),
        }

    def counts(self, column: pa.StructArray) -> dict[str, int]:
        """Nothing to count."""
        return {}

    def scores(self, column: pa.StructArray) -> dict[str, Histogram]:
        """How likely the texts are: the decimal logarithm of pseudo_perplexity, whose tail is long."""
        perplexities = column.field("pseudo_perplexity").drop_null().to_numpy()
        return {"log10 of pseudo_perplexity": numbers(np.log10(perplexities))}


@lru_cache(maxsize=8)
def _words(tokenizer: ConvBertTokenizer, vocab_size: int) -> Names:
    """Every word piece by its id."""
    return Names([tokenizer.decode([index]) for index in range(vocab_size)])


def _mask_id(tokenizer: ConvBertTokenizer) -> int:
    if tokenizer.mask_token_id is None:
        raise ModelError("the tokenizer has no mask_token: name it in its tokenizer_config.json")
    return tokenizer.mask_token_id
