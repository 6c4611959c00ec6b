"""What the examples' training shares: a WordPiece vocabulary out of texts, and the loop that fits weights to a loss."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from convbert import ConvBertTokenizer

SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PAD, UNK, CLS, SEP, MASK = range(len(SPECIAL_TOKENS))

VOCABULARY_SIZE = 8000
# A rarer character would take two entries of the vocabulary and is seen too seldom to be learnt.
RAREST_CHARACTER = 20
WORD_START = "▁"

WARM_UP = 0.1
WEIGHT_DECAY = 0.01

Batch = TypeVar("Batch")


# --- vocabulary ----------------------------------------------------------------------------------


def train_vocabulary(texts: Sequence[str], *, lowercase: bool) -> list[str]:
    """Return the pieces of a WordPiece vocabulary, the special tokens first."""
    normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    counts = Counter(char for text in texts for char in normalizer.normalize_str(text))
    frequent = {char for char, count in counts.items() if count >= RAREST_CHARACTER}
    alphabet = sorted({char for char in frequent if not char.isspace()} | {WORD_START})

    # The library's own WordPiece trainer numbers its pieces in another order at each run. Byte-pair
    # merges of marked words, with the alphabet given, are the same pieces in one order.
    merges = Tokenizer(models.BPE())
    merges.normalizer = normalizer
    merges.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.BertPreTokenizer(),
            pre_tokenizers.Metaspace(WORD_START, prepend_scheme="always", split=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    merges.train_from_iterator(texts, trainer)

    found = sorted(merges.get_vocab(), key=merges.get_vocab().__getitem__)
    pieces = [p.removeprefix(WORD_START) if p[0] == WORD_START else f"##{p}" for p in found]
    characters = [char for char in alphabet if char != WORD_START]
    return list(dict.fromkeys(SPECIAL_TOKENS + characters + list(filter(None, pieces))))[:VOCABULARY_SIZE]


def tokenizer_of(pieces: list[str], scratch: Path, *, lowercase: bool, max_length: int) -> ConvBertTokenizer:
    """The tokenizer with these pieces."""
    vocab = scratch / "vocab.txt"
    vocab.write_text("".join(f"{piece}\n" for piece in pieces), encoding="utf-8")
    return ConvBertTokenizer(vocab_file=vocab, do_lower_case=lowercase, model_max_length=max_length)


# --- fitting -------------------------------------------------------------------------------------


def hide(ids: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Ids with a share of the pieces hidden behind [MASK], and where."""
    hidden = (torch.rand(ids.shape) < share) & (ids >= len(SPECIAL_TOKENS))
    return torch.where(hidden, MASK, ids), hidden


def fit(
    modules: Sequence[nn.Module],
    batches: Callable[[], Iterable[Batch]],
    loss_of: Callable[[Batch], Tensor],
    *,
    epochs: int,
    steps_per_epoch: int,
    learning_rate: float,
    dropout: float,
    after_step: Callable[[], None] = lambda: None,
) -> None:
    """AdamW with linear warm-up and decay.

    Args:
        modules: what is trained; modules may have parts in common.
        batches: makes the ``steps_per_epoch`` batches of an epoch.
        loss_of: scalar loss of a batch.
        dropout: of every dropout in the modules.
        after_step: called when a step has changed the weights.
    """
    together = nn.ModuleList(modules)
    together.train()
    for part in together.modules():
        if isinstance(part, nn.Dropout):
            part.p = dropout
    parameters = list(together.parameters())
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.dim() > 1], "weight_decay": WEIGHT_DECAY},
            {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
        ],
        lr=learning_rate,
    )
    n_steps = epochs * steps_per_epoch
    schedule = LambdaLR(
        optimizer, lambda step: min((step + 1) / (WARM_UP * n_steps), (1 - step / n_steps) / (1 - WARM_UP))
    )
    started = time.monotonic()
    for epoch in range(epochs):
        total = 0.0
        for batch in batches():
            loss = loss_of(batch)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            after_step()
            total += loss.item()
        seconds = time.monotonic() - started
        print(f"epoch {epoch + 1} of {epochs}: loss {total / steps_per_epoch:.4f}, {seconds:.0f} s", flush=True)
