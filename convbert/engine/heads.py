"""Hidden states of a micro-batch in, a task's rows out: what can stand on the packed encoder.

Shapes: T tokens, R records, H hidden width, N rows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from convbert.engine.encoder import PackedEncoder
from convbert.engine.packing import Indices, Packed, Rows, gather, micro_batches
from convbert.engine.threads import n_side_by_side, side_by_side
from convbert.engine.transfer import send


class Head(nn.Module, ABC):
    """Reads hidden states where it needs them."""

    @abstractmethod
    def forward(self, hidden: Tensor, batch: Packed) -> Tensor:
        """Hidden states (T, H) of a micro-batch -> rows (N, …), the records' one after the other."""

    def n_rows(self, batch: Packed) -> Indices:
        """(R,) rows that each record gets: one, unless a subclass says otherwise."""
        return np.ones(len(batch.lengths), np.int64)

    def reads(self, batch: Packed) -> Indices:
        """Tokens whose hidden states it looks at, ascending: all, unless a subclass says otherwise."""
        return np.arange(len(batch.input_ids))


class _Modules(Head):
    """Modules, one after the other, on the tokens that it reads: a row for each."""

    def __init__(self, *modules: nn.Module) -> None:
        super().__init__()
        self.module = nn.Sequential(*modules)

    def forward(self, hidden: Tensor, batch: Packed) -> Tensor:
        """(T, H) -> (N, …)."""
        (rows,) = send(self.reads(batch), device=hidden.device)
        return self.module(hidden[rows])


class FirstToken(_Modules):
    """Modules, one after the other, on each record's first token: one row a record."""

    def reads(self, batch: Packed) -> Indices:
        """Where the records begin."""
        return np.asarray(batch.offsets[:-1])


class EachToken(_Modules):
    """Modules, one after the other, on every token: as many rows as the record has tokens."""

    def forward(self, hidden: Tensor, batch: Packed) -> Tensor:
        """(T, H) -> (T, …)."""
        return self.module(hidden)

    def n_rows(self, batch: Packed) -> Indices:
        """The records' lengths."""
        return batch.lengths


class TokensWithId(_Modules):
    """Modules, one after the other, on the tokens that have one id, such as [MASK]: a row for each of them."""

    def __init__(self, *modules: nn.Module, token_id: int) -> None:
        super().__init__(*modules)
        self.token_id = token_id

    def n_rows(self, batch: Packed) -> Indices:
        """How often the id stands in each record."""
        return np.add.reduceat(batch.input_ids == self.token_id, batch.offsets[:-1], dtype=np.int64)

    def reads(self, batch: Packed) -> Indices:
        """Where the id stands."""
        return np.flatnonzero(batch.input_ids == self.token_id)


class WholeRecord(_Modules):
    """Modules, one after the other, on each record's hidden states: one row a record.

    They are given (R, L, H): the records of one length at a time.
    """

    def forward(self, hidden: Tensor, batch: Packed) -> Tensor:
        """(T, H) -> (R, …)."""
        lengths = batch.lengths
        edges = [0, *(np.flatnonzero(np.diff(lengths)) + 1), len(lengths)]
        rows = []
        for first, last in pairwise(edges):
            group = hidden[batch.offsets[first] : batch.offsets[last]]
            rows.append(self.module(group.view(last - first, int(lengths[first]), -1)))
        return torch.cat(rows)


class Pooled(Head):
    """The mean or maximum over each record's counted tokens: one row of H a record, in float32."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, hidden: Tensor, batch: Packed) -> Tensor:
        """(T, H) -> (R, H)."""
        starts, lengths = np.asarray(batch.offsets)[:-1], batch.n_counted
        if batch.counted is not None:
            starts = starts + batch.counted[:, 0]
        rows, _ = gather(starts, lengths)
        rows_there, lengths_there = send(rows, lengths, device=hidden.device)
        # unsafe: torch would wait for the device to check the lengths
        return torch.segment_reduce(hidden[rows_there].float(), self.kind, lengths=lengths_there, unsafe=True)


class PseudoLikelihood(nn.Module):
    """How likely each record's tokens are, each hidden in turn behind [MASK] (Salazar et al. 2020, equation 1).

    It runs the encoder itself, once for every token that is scored.

    Args:
        modules: one after the other, hidden states (N, H) -> logits (N, vocab_size).
        mask_id: id of [MASK].
        unscored: ids that are not scored, such as [CLS] and [SEP].
    """

    def __init__(self, *modules: nn.Module, mask_id: int, unscored: frozenset[int]) -> None:
        super().__init__()
        self.module = nn.Sequential(*modules)
        self.mask_id = mask_id
        self.unscored = np.array(sorted(unscored))

    def forward(self, encoder: PackedEncoder, records: Packed, max_batch_tokens: int) -> Rows:
        """(R, 2): sum of the logarithms of the probabilities, and how many tokens were scored."""
        lengths = records.lengths
        owners = np.repeat(np.arange(len(lengths)), lengths)  # (T,)
        places = np.arange(len(owners)) - np.asarray(records.offsets)[owners]
        is_scored = ~np.isin(records.input_ids, self.unscored) & records.is_counted
        owners, places = owners[is_scored], places[is_scored]  # a copy of its record for each scored token

        @torch.inference_mode()  # which each thread enters by itself
        def score(copies: Indices) -> tuple[Indices, Tensor]:
            batch = records.take(owners[copies])
            masks = batch.offsets[:-1] + places[copies]
            ids = batch.input_ids.copy()
            ids[masks] = self.mask_id
            hidden = encoder(batch._replace(input_ids=ids), masks)
            rows, words = send(masks, batch.input_ids[masks], device=hidden.device)
            logits = self.module(hidden[rows]).float()
            return owners[copies], logits.log_softmax(-1).gather(1, words[:, None])[:, 0]

        n_threads = n_side_by_side(int(lengths[owners].sum()), max_batch_tokens, encoder.device)
        batches = micro_batches(lengths[owners], max_batch_tokens, n_threads=n_threads)
        found = side_by_side(score, batches, n_threads=n_threads)
        totals = np.zeros((len(lengths), 2), np.float64)
        for records_of, scores in found:  # fetched when all are on their way
            np.add.at(totals, records_of, np.stack([scores.cpu().numpy(), np.ones(len(records_of))], 1))
        return Rows(totals.astype(np.float32), np.arange(len(lengths) + 1))


class Probabilities(nn.Module):
    """Logits (N, C) -> (N, C) by softmax, in float32."""

    def forward(self, logits: Tensor) -> Tensor:
        return logits.float().softmax(-1)


class Likeliest(nn.Module):
    """Logits (N, C) -> (N, 2k): the k highest probabilities, then their classes (exact below 2^20).

    Of equals, which bf16 has many, the first class is the likeliest, so that k classes are the first k of more.
    """

    def __init__(self, k: int = 1) -> None:
        super().__init__()
        self.k = k

    def forward(self, logits: Tensor) -> Tensor:
        probabilities = logits.float().softmax(-1)
        if self.k == 1:
            highest, classes = probabilities.max(-1, keepdim=True)
        else:
            later = torch.arange(logits.shape[-1], dtype=torch.float64, device=logits.device)
            ranks = probabilities.double() * (1 - later * 2**-44)  # neighbours in float32 are 2^-24 apart,
            ranks -= later * 2.0**-1070  # and the least of them is far above what is taken from zeros
            classes = ranks.topk(self.k).indices
            highest = probabilities.gather(-1, classes)
        return torch.cat([highest, classes.float()], -1)
