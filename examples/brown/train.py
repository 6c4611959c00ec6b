"""Turn tagged sentences into two checkpoint folders, pos and prose: one small ConvBERT encoder with two heads."""

from __future__ import annotations

import argparse
import random
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from convbert import (
    ConvBertConfig,
    ConvBertForSequenceClassification,
    ConvBertForTokenClassification,
    ConvBertTokenizer,
)
from convbert.losses import IGNORED
from examples.preparation import Record
from examples.training import PAD, fit, hide, tokenizer_of, train_vocabulary

HERE = Path(__file__).resolve().parent
TAGS = ["NOUN", "VERB", "ADJ", "ADV", "PRON", "DET", "ADP", "NUM", "CONJ", "PRT", ".", "X"]
KINDS = ["informative", "imaginative"]

LOWERCASE = False  # capitals tell names
MAX_LENGTH = 256
BATCH_TOKENS = 1024
EPOCHS = 7
LEARNING_RATE = 1.5e-3
DROPOUT = 0.1
MASKED = 0.1  # share of the pieces that are hidden, so that the neighbours learn to tell
AVERAGE_DECAY = 0.995


class Sentence(NamedTuple):
    """A sentence of L word pieces, special tokens included.

    Attributes:
        ids, tags: (L,).
        begins: (L,), whether the piece begins a token of Brown's.
        kind: of its document.
    """

    ids: list[int]
    tags: list[int]
    begins: list[bool]
    kind: int


class Batch(NamedTuple):
    """B sentences of equal length: (B, L) three times, (B,)."""

    ids: Tensor
    tags: Tensor
    begins: Tensor
    kinds: Tensor


# --- sentences and batches -------------------------------------------------------------------------


def encode(records: list[Record], tokenizer: ConvBertTokenizer) -> list[Sentence]:
    """Give every word piece the class of the token of Brown's that its first character belongs to."""
    encoded = tokenizer.encode_batch([record["text"] for record in records], max_length=MAX_LENGTH, spans=True)
    assert encoded.spans is not None  # asked for
    sentences = []
    for record, ids, spans in zip(records, encoded.input_ids, encoded.spans, strict=True):
        starts, is_text = spans[:, 0], spans[:, 2] >= 0
        classes = np.array([TAGS.index(tag) for tag in record["tags"]])
        tags = np.where(is_text, classes[np.searchsorted(record["starts"], starts, side="right") - 1], IGNORED)
        begins = is_text & np.isin(starts, record["starts"])
        sentences.append(Sentence(ids, tags.tolist(), begins.tolist(), KINDS.index(record["kind"])))
    return sentences


def batches(sentences: list[Sentence], rng: random.Random) -> list[Batch]:
    """One epoch in random order; the sentences of a batch are equally long, so that nothing is padded or cut."""
    by_length: dict[int, list[Sentence]] = defaultdict(list)
    for sentence in rng.sample(sentences, len(sentences)):
        by_length[len(sentence.ids)].append(sentence)
    groups = []
    for length, equal in by_length.items():
        n_rows = max(1, BATCH_TOKENS // length)
        groups += [equal[start : start + n_rows] for start in range(0, len(equal), n_rows)]
    rng.shuffle(groups)
    return [Batch(*map(torch.tensor, zip(*group, strict=True))) for group in groups]


# --- the model and its training --------------------------------------------------------------------


class TwoHeads(nn.Module):
    """One encoder with a class for each token and a class for each sentence."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.pos = ConvBertForTokenClassification(_config(vocab_size, TAGS))
        self.prose = ConvBertForSequenceClassification(_config(vocab_size, KINDS))
        self.prose.convbert = self.pos.convbert

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """(B, L) -> (B, L, tags) and (B, kinds) logits."""
        hidden = self.pos.convbert(ids).last_hidden_state
        return self.pos.logits(hidden), self.prose.logits(hidden)


def _config(vocab_size: int, labels: list[str]) -> ConvBertConfig:
    return ConvBertConfig(
        vocab_size=vocab_size,
        hidden_size=128,
        embedding_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=512,
        max_position_embeddings=MAX_LENGTH,
        pad_token_id=PAD,
        bos_token_id=None,
        eos_token_id=None,
        initializer_range=0.05,
        id2label=dict(enumerate(labels)),
    )


def train(model: TwoHeads, sentences: list[Sentence], rng: random.Random) -> TwoHeads:
    """Train both heads at once, and return the model with the running average of its weights."""
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(AVERAGE_DECAY))

    def loss(batch: Batch) -> Tensor:
        tags, kinds = model(hide(batch.ids, MASKED)[0])
        return model.pos.loss(tags, batch.tags) + model.prose.loss(kinds, batch.kinds)

    fit(
        [model],
        lambda: batches(sentences, rng),
        loss,
        epochs=EPOCHS,
        steps_per_epoch=len(batches(sentences, random.Random(0))),
        learning_rate=LEARNING_RATE,
        dropout=DROPOUT,
        after_step=lambda: average.update_parameters(model),
    )
    return cast("TwoHeads", average.module)


def accuracies(model: TwoHeads, sentences: list[Sentence]) -> tuple[float, float]:
    """Shares of Brown's tokens and of the sentences that get their class, nothing padded."""
    model.eval()
    right = torch.zeros(2)
    count = torch.zeros(2)
    with torch.inference_mode():
        for batch in batches(sentences, random.Random(0)):
            tags, kinds = model(batch.ids)
            right += torch.tensor(
                [(tags.argmax(-1) == batch.tags)[batch.begins].sum(), (kinds.argmax(-1) == batch.kinds).sum()]
            )
            count += torch.tensor([batch.begins.sum(), len(batch.kinds)])
    of_tokens, of_sentences = (right / count).tolist()
    return of_tokens, of_sentences


def save(model: TwoHeads, tokenizer: ConvBertTokenizer, folder: Path) -> None:
    """Write both checkpoints, their weights as float16: half the bytes, one encoder."""
    for name, task in (("pos", model.pos), ("prose", model.prose)):
        task.half().save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)


def main() -> None:
    """Train, and save both checkpoints; with --validate measure on a tenth of the documents that it holds back."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=HERE / "work", help="training sentences, from prepare.py")
    parser.add_argument("--checkpoints", type=Path, default=HERE, help="folder to write pos/ and prose/ into")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--validate", action="store_true", help="hold a tenth of the documents back, save nothing")
    arguments = parser.parse_args()

    torch.manual_seed(arguments.seed)
    torch.set_num_threads(1)  # the weights depend on it, in their last digits
    rng = random.Random(arguments.seed)
    records = pq.read_table(arguments.work / "training.parquet").to_pylist()
    documents = sorted({document_of(record) for record in records})
    held_back = set(rng.sample(documents, len(documents) // 10)) if arguments.validate else set()
    training = [record for record in records if document_of(record) not in held_back]
    validation = [record for record in records if document_of(record) in held_back]

    pieces = train_vocabulary([record["text"] for record in training], lowercase=LOWERCASE)
    with tempfile.TemporaryDirectory() as scratch:
        tokenizer = tokenizer_of(pieces, Path(scratch), lowercase=LOWERCASE, max_length=MAX_LENGTH)
    sentences = encode(training, tokenizer)
    model = TwoHeads(len(pieces))
    trained = train(model, sentences, rng)
    if arguments.validate:
        of_tokens, of_sentences = accuracies(trained, encode(validation, tokenizer))
        print(f"validation accuracy: pos {of_tokens:.4f}, prose {of_sentences:.4f}")
    else:
        save(trained, tokenizer, arguments.checkpoints)


def document_of(record: Record) -> str:
    """Name of the document that a sentence stands in."""
    return record["id"].split("-")[0]


if __name__ == "__main__":
    main()
