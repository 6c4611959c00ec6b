"""Turn training text into a checkpoint folder: a WordPiece vocabulary and a small ConvBERT."""

from __future__ import annotations

import argparse
import random
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from convbert import ConvBertConfig, ConvBertForSequenceClassification
from examples.training import CLS, PAD, SEP, UNK, fit, hide, tokenizer_of, train_vocabulary

HERE = Path(__file__).resolve().parent
LABELS = {0: "ham", 1: "spam"}
# One mail with a file pasted into it would otherwise fill the vocabulary with base64.
VOCABULARY_CHARACTERS = 20_000

MAX_LENGTH = 512
BATCH_SIZE = 16
AVERAGE_DECAY = 0.99


@dataclass(frozen=True)
class Phase:
    """How one pass of training reads the texts and how hard it pushes."""

    epochs: int
    learning_rate: float
    longest: int  # pieces of a window
    shortest_share: float  # a window's least length, as a share of the text's own
    opening_share: float  # windows that begin where the text begins
    masked: float  # share of the pieces that are hidden
    dropout: float


PRETRAINING = Phase(
    epochs=16,
    learning_rate=2e-3,
    longest=128,
    shortest_share=0.5,
    opening_share=0.0,
    masked=0.15,
    dropout=0.0,
)
CLASSIFICATION = Phase(
    epochs=5,
    learning_rate=1e-3,
    longest=MAX_LENGTH,
    shortest_share=0.5,
    opening_share=0.5,
    masked=0.1,
    dropout=0.1,
)


Windows = tuple[Tensor, Tensor]  # ids (B, L), labels (B,)


@dataclass(frozen=True)
class Mail:
    pieces: list[int]
    label: int


# --- batches without padding -------------------------------------------------------------------------


def windows(mails: list[Mail], phase: Phase, rng: random.Random) -> Iterator[Windows]:
    """One epoch of (ids, labels): random windows, each batch of one length.

    At labelling time every text runs alone and unpadded, so nothing is padded here either: neighbours in
    length are cut to the shortest of them.
    """
    share = phase.shortest_share
    wanted = [max(1, int(min(len(mail.pieces), phase.longest - 2) * rng.uniform(share, 1))) for mail in mails]
    order = sorted(range(len(mails)), key=wanted.__getitem__)
    batches = [order[start : start + BATCH_SIZE] for start in range(0, len(order), BATCH_SIZE)]
    rng.shuffle(batches)
    for batch in batches:
        length = min(wanted[index] for index in batch)
        rows = [window(mails[index].pieces, length, phase, rng) for index in batch]
        yield torch.tensor(rows), torch.tensor([mails[index].label for index in batch])


def window(pieces: list[int], length: int, phase: Phase, rng: random.Random) -> list[int]:
    """A stretch of a text between [CLS] and [SEP]."""
    opens = rng.random() < phase.opening_share
    start = 0 if opens else rng.randint(0, len(pieces) - length)
    return [CLS, *pieces[start : start + length], SEP]


# --- the two phases ----------------------------------------------------------------------------------


class WordHead(nn.Module):
    """Guesses hidden pieces; used in pre-training only, its matrix is the word embeddings."""

    def __init__(self, embeddings: nn.Embedding) -> None:
        super().__init__()
        self.dense = nn.Linear(embeddings.embedding_dim, embeddings.embedding_dim)
        self.norm = nn.LayerNorm(embeddings.embedding_dim)
        self.bias = nn.Parameter(torch.zeros(embeddings.num_embeddings))

    def forward(self, hidden: Tensor, embeddings: nn.Embedding) -> Tensor:
        return F.linear(self.norm(F.gelu(self.dense(hidden))), embeddings.weight, self.bias)


def pretrain(model: ConvBertForSequenceClassification, mails: list[Mail], rng: random.Random) -> None:
    """Masked language modelling on the training texts."""
    embeddings = model.convbert.embeddings.word_embeddings
    head = WordHead(embeddings)

    def loss(batch: Windows) -> Tensor:
        ids, _ = batch
        corrupted, hidden = hide(ids, PRETRAINING.masked)
        states = model.convbert(corrupted).last_hidden_state[hidden]
        return F.cross_entropy(head(states, embeddings), ids[hidden]) if hidden.any() else states.sum()

    fit_to([model, head], loss, mails, PRETRAINING, rng)


def classify(model: ConvBertForSequenceClassification, mails: list[Mail], rng: random.Random) -> nn.Module:
    """Train the labels, and return the model with the running average of its weights."""
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(AVERAGE_DECAY))

    def loss(batch: Windows) -> Tensor:
        ids, labels = batch
        return F.cross_entropy(model(hide(ids, CLASSIFICATION.masked)[0]).logits, labels)

    fit_to([model], loss, mails, CLASSIFICATION, rng, after_step=lambda: average.update_parameters(model))
    return average.module


def fit_to(
    modules: list[nn.Module],
    loss_of: Callable[[Windows], Tensor],
    mails: list[Mail],
    phase: Phase,
    rng: random.Random,
    after_step: Callable[[], None] = lambda: None,
) -> None:
    """Train on new windows of the texts in every epoch of a phase."""
    fit(
        modules,
        lambda: windows(mails, phase, rng),
        loss_of,
        epochs=phase.epochs,
        steps_per_epoch=-(-len(mails) // BATCH_SIZE),
        learning_rate=phase.learning_rate,
        dropout=phase.dropout,
        after_step=after_step,
    )


def accuracy(model: nn.Module, mails: list[Mail]) -> float:
    """Share of texts that get their label, each run alone and unpadded."""
    model.eval()
    right = 0
    with torch.inference_mode():
        for mail in mails:
            ids = torch.tensor([[CLS, *mail.pieces[: MAX_LENGTH - 2], SEP]])
            right += int(model(ids).logits.argmax()) == mail.label
    return right / len(mails)


def main() -> None:
    """Train, and save the checkpoint; with --validate train on four fifths and measure on the last."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=HERE / "work", help="training text, from prepare.py")
    parser.add_argument("--checkpoint", type=Path, default=HERE / "checkpoint", help="folder to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--validate", action="store_true", help="hold a fifth of the training text back, save nothing")
    arguments = parser.parse_args()

    torch.manual_seed(arguments.seed)
    torch.set_num_threads(1)  # the weights depend on it, in their last digits
    rng = random.Random(arguments.seed)
    records = pq.read_table(arguments.work / "training.parquet").to_pylist()
    bound = len(records) // 5 if arguments.validate else 0
    validation, training = records[:bound], records[bound:]

    texts = [record["text"][:VOCABULARY_CHARACTERS] for record in training]
    pieces = train_vocabulary(texts, lowercase=True)
    with tempfile.TemporaryDirectory() as scratch:
        tokenizer = tokenizer_of(pieces, Path(scratch), lowercase=True, max_length=MAX_LENGTH)

    def mails(group: list[dict[str, str]]) -> list[Mail]:
        ids = tokenizer.encode_batch([record["text"] for record in group]).input_ids
        codes = [int(record["label"] == LABELS[1]) for record in group]
        return [Mail(row[1:-1] or [UNK], code) for row, code in zip(ids, codes, strict=True)]

    model = ConvBertForSequenceClassification(
        ConvBertConfig(
            vocab_size=len(pieces),
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
            id2label=LABELS,
        )
    )
    pretrain(model, mails(training), rng)
    trained = classify(model, mails(training), rng)
    if arguments.validate:
        print(f"validation accuracy {accuracy(trained, mails(validation)):.4f}")
        return
    model.load_state_dict(trained.state_dict())
    model.save_pretrained(arguments.checkpoint)
    tokenizer.save_pretrained(arguments.checkpoint)


if __name__ == "__main__":
    main()
