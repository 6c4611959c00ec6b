"""Head names and checkpoint URLs in, encoder passes out: heads that share an encoder share a pass."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from convbert import ConvBertConfig, ConvBertError, ConvBertTokenizer
from convbert.checkpoints import fingerprint
from convbert.models import PreTrainedModel
from pipelines.encode import Encoding
from pipelines.errors import ModelError
from pipelines.heads import Head, head_for
from pipelines.spec import JobSpec
from pipelines.storage import redacted


@dataclass(frozen=True)
class HeadPlan:
    """One head of a job, checked before the job starts.

    Attributes:
        name: output column.
        url: checkpoint folder or URL.
        head: the task, and how its logits become a column.
        fingerprint: SHA-256 over all its weights, and the settings that shapes do not tell.
    """

    name: str
    url: str
    head: Head
    fingerprint: str

    def describe(self) -> dict[str, Any]:
        """The manifest's account of the head."""
        return {
            "name": self.name,
            "task": self.head.task,
            "labels": self.head.labels,
            "fingerprint": self.fingerprint,
        }


@dataclass(frozen=True)
class EncoderPass:
    """One run of an encoder over the corpus, and the heads on it."""

    encoding: Encoding
    heads: tuple[HeadPlan, ...]

    def describe(self) -> list[dict[str, Any]]:
        """The manifest's account of the heads: everything that decides what they predict."""
        tokens = {"tokenizer": self.encoding.fingerprint, "max_length": self.encoding.max_length}
        return [{**head.describe(), **tokens} for head in self.heads]


@dataclass(frozen=True)
class LoadedHead:
    """A head with its model."""

    plan: HeadPlan
    model: PreTrainedModel


def plan_passes(spec: JobSpec) -> list[EncoderPass]:
    """Check every head's checkpoint, and put those together whose encoder and tokenizer are identical.

    Raises:
        ModelError: a checkpoint that cannot be read or cannot label.
    """
    groups: dict[tuple[str, str, int], list[HeadPlan]] = {}
    texts = (spec.text_column, *([spec.text_pair_column] if spec.text_pair_column else []))
    for name, url in spec.head.items():
        plan, encoder, tokenizer, max_length = _inspect(name, url)
        groups.setdefault((encoder, tokenizer, max_length), []).append(plan)
    return [
        EncoderPass(
            Encoding(
                name=str(number),
                tokenizer=heads[0].url,
                fingerprint=tokenizer,
                max_length=max_length,
                long_text="error" if spec.long_text == "error" else "truncate",
                texts=texts,
            ),
            tuple(heads),
        )
        for number, ((_, tokenizer, max_length), heads) in enumerate(groups.items())
    ]


def _inspect(name: str, url: str) -> tuple[HeadPlan, str, str, int]:
    """The head's plan, and what must be equal to share its pass: encoder, tokenizer, length."""
    try:
        loaded = load_head(name, url)
        tokenizer = ConvBertTokenizer.from_pretrained(url)
    except ConvBertError as error:
        raise ModelError(f"--head {name}: {redacted(str(error))}") from error
    config: ConvBertConfig = loaded.model.config
    if tokenizer.vocab_size > config.vocab_size:
        raise ModelError(
            f"--head {name}: the tokenizer has ids up to {tokenizer.vocab_size - 1}, but the model only "
            f"{config.vocab_size} embeddings: tokenizer and weights do not belong together"
        )
    encoder = _fingerprint(loaded.model.base_model.state_dict(), config)
    max_length = min(config.max_position_embeddings, tokenizer.model_max_length or config.max_position_embeddings)
    return loaded.plan, encoder, tokenizer.fingerprint(), max_length


def load_head(name: str, url: str) -> LoadedHead:
    """A head's model with all its weights.

    Raises:
        ModelError: no task, or weights that are missing: a random head labels nothing.
        ConvBertError: a checkpoint that cannot be read.
    """
    config = ConvBertConfig.from_pretrained(url)
    head = head_for(config, source=redacted(url))
    model, report = head.model_class.load(url, config=config)
    if report.missing:
        raise ModelError(
            f"--head {name}: {redacted(url)} has no weights for {', '.join(report.missing[:3])}"
            f"{' …' if len(report.missing) > 3 else ''}: give a checkpoint that was trained for this task"
        )
    return LoadedHead(HeadPlan(name, url, head, _fingerprint(model.state_dict(), config)), model)


def _fingerprint(weights: Mapping[str, Tensor], config: ConvBertConfig) -> str:
    """Equal only where the same input gives the same numbers."""
    settings = [config.hidden_act, config.layer_norm_eps]  # all others show in names and shapes
    return hashlib.sha256(f"{fingerprint(weights)} {json.dumps(settings)}".encode()).hexdigest()
