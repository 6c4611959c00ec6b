"""Turn training text into a checkpoint folder: a WordPiece vocabulary and a small ConvBERT."""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from convbert import ConvBertConfig, ConvBertForSequenceClassification, ConvBertTokenizer

HERE = Path(__file__).resolve().parent
LABELS = {0: "ham", 1: "spam"}
SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PAD, UNK, CLS, SEP, MASK = range(len(SPECIAL_TOKENS))

VOCABULARY_SIZE = 8000
# A rarer character would take two entries of the vocabulary and is seen too seldom to be learnt.
RAREST_CHARACTER = 20
# One mail with a file pasted into it would otherwise fill the vocabulary with base64.
VOCABULARY_CHARACTERS = 20_000
WORD_START = "▁"

MAX_LENGTH = 512
BATCH_SIZE = 16
WARM_UP = 0.1
WEIGHT_DECAY = 0.01
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


@dataclass(frozen=True)
class Mail:
    pieces: list[int]
    label: int


# --- vocabulary ----------------------------------------------------------------------------------


def train_vocabulary(texts: list[str]) -> list[str]:
    """Return the pieces of a WordPiece vocabulary, the special tokens first."""
    texts = [text[:VOCABULARY_CHARACTERS] for text in texts]
    normalizer = normalizers.BertNormalizer(lowercase=True)
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


def tokenizer_of(pieces: list[str], scratch: Path) -> ConvBertTokenizer:
    """The tokenizer with these pieces."""
    vocab = scratch / "vocab.txt"
    vocab.write_text("".join(f"{piece}\n" for piece in pieces), encoding="utf-8")
    return ConvBertTokenizer(vocab_file=vocab, do_lower_case=True, model_max_length=MAX_LENGTH)


# --- batches without padding -------------------------------------------------------------------------


def windows(mails: list[Mail], phase: Phase, rng: random.Random) -> Iterator[tuple[Tensor, Tensor]]:
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


def hide(ids: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Ids with a share of the pieces hidden behind [MASK], and where."""
    hidden = (torch.rand(ids.shape) < share) & (ids >= len(SPECIAL_TOKENS))
    return torch.where(hidden, MASK, ids), hidden


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

    def loss(ids: Tensor, _: Tensor) -> Tensor:
        corrupted, hidden = hide(ids, PRETRAINING.masked)
        states = model.convbert(corrupted).last_hidden_state[hidden]
        return F.cross_entropy(head(states, embeddings), ids[hidden]) if hidden.any() else states.sum()

    fit([model, head], loss, mails, PRETRAINING, rng, after_step=lambda: None)


def classify(model: ConvBertForSequenceClassification, mails: list[Mail], rng: random.Random) -> nn.Module:
    """Train the labels, and return the model with the running average of its weights."""
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(AVERAGE_DECAY))

    def loss(ids: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(model(hide(ids, CLASSIFICATION.masked)[0]).logits, labels)

    fit([model], loss, mails, CLASSIFICATION, rng, after_step=lambda: average.update_parameters(model))
    return average.module


def fit(
    modules: list[nn.Module],
    loss_of: Callable[[Tensor, Tensor], Tensor],
    mails: list[Mail],
    phase: Phase,
    rng: random.Random,
    after_step: Callable[[], None],
) -> None:
    """AdamW with linear warm-up and decay over the epochs of a phase."""
    parameters = [parameter for module in modules for parameter in module.parameters()]
    for module in modules:
        module.train()
        for dropout in (part for part in module.modules() if isinstance(part, nn.Dropout)):
            dropout.p = phase.dropout
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.dim() > 1], "weight_decay": WEIGHT_DECAY},
            {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
        ],
        lr=phase.learning_rate,
    )
    n_steps = phase.epochs * -(-len(mails) // BATCH_SIZE)
    schedule = LambdaLR(
        optimizer, lambda step: min((step + 1) / (WARM_UP * n_steps), (1 - step / n_steps) / (1 - WARM_UP))
    )
    started = time.monotonic()
    for epoch in range(phase.epochs):
        total = 0.0
        for ids, labels in windows(mails, phase, rng):
            loss = loss_of(ids, labels)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            after_step()
            total += loss.item()
        mean = total * phase.epochs / n_steps
        print(f"epoch {epoch + 1} of {phase.epochs}: loss {mean:.4f}, {time.monotonic() - started:.0f} s", flush=True)


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

    pieces = train_vocabulary([record["text"] for record in training])
    with tempfile.TemporaryDirectory() as scratch:
        tokenizer = tokenizer_of(pieces, Path(scratch))

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
