"""Head names and checkpoint URLs in, encoder passes out: heads that share an encoder share a pass."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import convbert
from convbert import ConvBertConfig, ConvBertError, ConvBertTokenizer
from convbert.checkpoints import Checkpoint, located
from pipelines.encode import Encoding
from pipelines.errors import ModelError, SpecError
from pipelines.heads import HEADS, Head, PseudoLogLikelihood, head_for
from pipelines.spec import JobSpec, flag
from pipelines.storage import absolute, redacted

if TYPE_CHECKING:
    from convbert.models import PreTrainedModel

JOBS = {
    "text-classification": "classify_corpus.py",
    "token-classification": "tag_corpus.py",
    "question-answering": "answer_corpus.py",
    "multiple-choice": "choose_corpus.py",
    "fill-mask": "fill_masks.py",
    "feature-extraction": "embed_corpus.py",
}
"""The script in jobs/ for each task."""
_COLUMNS = ("text_column", "text_pair_column", "question_column", "context_column", "choices_column")


@dataclass(frozen=True)
class HeadPlan:
    """One head of a job, checked before the job starts.

    Attributes:
        name: output column.
        url: checkpoint folder or URL.
        head: the task, and how its logits become a column.
        fingerprint: SHA-256 over all its weights, and the settings that shapes do not tell.
        settings: the job's settings that change the column.
        config: the checkpoint's.
    """

    name: str
    url: str
    head: Head
    fingerprint: str
    settings: Mapping[str, Any]
    config: ConvBertConfig

    def describe(self) -> dict[str, Any]:
        """The manifest's account of the head."""
        return {
            "name": self.name,
            "task": self.head.task,
            "labels": self.head.labels,
            "fingerprint": self.fingerprint,
            **self.settings,
        }


@dataclass(frozen=True)
class EncoderPass:
    """One run of an encoder over the corpus, and the heads on it."""

    encoding: Encoding
    heads: tuple[HeadPlan, ...]

    def describe(self) -> list[dict[str, Any]]:
        """The manifest's account of the heads: everything that decides what they predict."""
        encoding = self.encoding
        tokens = {
            "columns": list(encoding.inputs.columns),
            "long_text": encoding.long_text,
            "max_length": encoding.max_length,
            "stride": encoding.stride,
            "tokenizer": encoding.fingerprint,
        }
        return [{**head.describe(), **tokens} for head in self.heads]


def heads_of(passes: Sequence[EncoderPass]) -> dict[str, Head]:
    """Every head of the passes by its name."""
    return {plan.name: plan.head for encoder_pass in passes for plan in encoder_pass.heads}


def describe_sharing(passes: Sequence[EncoderPass]) -> str:
    """Which heads share a pass, in words: for people who read the plan."""
    groups = [", ".join(f"{plan.name} ({plan.head.task})" for plan in encoder_pass.heads) for encoder_pass in passes]
    if len(groups) == 1:
        return f"one encoder pass: {groups[0]}"
    return f"{len(groups)} encoder passes: " + "; ".join(f"{n}. {group}" for n, group in enumerate(groups, start=1))


def plan_passes(spec: JobSpec) -> list[EncoderPass]:
    """Check every head's checkpoint, and put those together whose encoder and input are identical.

    Raises:
        ModelError: a checkpoint that cannot be read or cannot label, or none for the job's task.
        SpecError: a setting that no head looks at, which would be ignored in silence.
    """
    passes = share_passes({name: (url, spec) for name, url in spec.head.items()})
    tasks = {name: head.task for name, head in heads_of(passes).items()}
    if spec.task and spec.task not in tasks.values():
        found = ", ".join(f"--head {name} is for {task}" for name, task in tasks.items())
        jobs = " or ".join(sorted({JOBS[task] for task in tasks.values()}))
        raise ModelError(f"this job is for {spec.task}, but {found}: start {jobs}, or give another checkpoint")
    if ignored := ignored_settings(spec, passes):
        raise SpecError(f"{', '.join(map(flag, ignored))}: no head of this job looks at it: leave it out")
    return passes


def ignored_settings(spec: JobSpec, passes: Sequence[EncoderPass]) -> list[str]:
    """What the job sets otherwise than by default and none of its heads looks at."""
    heads = heads_of(passes).values()
    columns = {column for head in heads for column in head.inputs.columns}
    looked_at = {name for head in heads for name in head.settings_in_use}
    looked_at |= {name for name in _COLUMNS if getattr(spec, name) in columns}
    if any(encoder_pass.encoding.long_text == "window" for encoder_pass in passes):
        looked_at.add("stride")
    else:
        looked_at.discard("window_pooling")
    kinds: list[type[Head]] = [*HEADS.values(), PseudoLogLikelihood]
    of_heads = {name for kind in kinds for name in kind.settings}
    defaults = {name: field.get_default(call_default_factory=True) for name, field in JobSpec.model_fields.items()}
    return [
        name
        for name in defaults
        if name in {*of_heads, *_COLUMNS, "stride"} - looked_at and getattr(spec, name) != defaults[name]
    ]


def share_passes(heads: Mapping[str, tuple[str, JobSpec]]) -> list[EncoderPass]:
    """Check the checkpoint of every head, given by its URL and settings, and put together what can share a pass.

    Raises:
        ModelError: a checkpoint that cannot be read or cannot label.
    """
    groups: dict[tuple[str, Encoding], list[HeadPlan]] = {}
    for name, (url, spec) in heads.items():
        plan, encoder, encoding = _inspect(name, absolute(url), spec, shares=len(heads) > 1)
        groups.setdefault((encoder, encoding), []).append(plan)
    return [
        EncoderPass(
            replace(
                encoding,
                name=str(number),
                tokenizer=plans[0].url,
                needs_spans=any(plan.head.needs_spans for plan in plans),
                needs_mask=any(plan.head.needs_mask for plan in plans),
            ),
            tuple(plans),
        )
        for number, ((_, encoding), plans) in enumerate(groups.items())
    ]


def _inspect(name: str, url: str, spec: JobSpec, *, shares: bool) -> tuple[HeadPlan, str, Encoding]:
    """The head's plan, and what must be equal to share its pass, if there is another: encoder and encoding."""
    try:
        checkpoint = located(url)
        config = ConvBertConfig.from_pretrained(checkpoint)
        tokenizer = ConvBertTokenizer.from_pretrained(checkpoint)
        head = head_for(config, tokenizer, spec, source=checkpoint.source)
        model = load_model(head, checkpoint, config)
        check_vocabulary(config, tokenizer, source=checkpoint.source)
        fingerprint = tokenizer.fingerprint()
        encoding = encoding_for(head, config, tokenizer, spec, fingerprint=fingerprint, source=checkpoint.source)
    except ConvBertError as error:
        raise ModelError(f"--head {name}: {redacted(str(error))}") from error
    except ModelError as error:
        raise ModelError(f"--head {name}: {error}") from error
    settings = {field: getattr(spec, field) for field in head.settings}
    plan = HeadPlan(name, url, head, weights_fingerprint(model), settings, config)
    return plan, weights_fingerprint(model.base_model) if shares else "", encoding


def check_vocabulary(config: ConvBertConfig, tokenizer: ConvBertTokenizer, *, source: str) -> None:
    """See that the model knows every id of the tokenizer.

    Raises:
        ModelError: tokenizer and weights do not belong together.
    """
    if tokenizer.vocab_size > config.vocab_size:
        raise ModelError(
            f"the tokenizer of {source} has ids up to {tokenizer.vocab_size - 1}, but the model only "
            f"{config.vocab_size} embeddings: tokenizer and weights do not belong together"
        )


def encoding_for(
    head: Head, config: ConvBertConfig, tokenizer: ConvBertTokenizer, spec: JobSpec, *, fingerprint: str, source: str
) -> Encoding:
    """How a head's input is made; its name, and what other heads need of it, are yet to come.

    Args:
        fingerprint: the tokenizer's, which takes longer than all of this.

    Raises:
        ModelError: two texts for a model of one, or lengths that cannot work.
    """
    has_types = "token_type_ids" in tokenizer.model_input_names
    types = tokenizer.create_token_type_ids_from_sequences([], []) if has_types else []
    if len(head.inputs.columns) == 2 and max(types, default=0) >= config.type_vocab_size:
        raise ModelError(
            f"{source} tells no two texts apart (type_vocab_size {config.type_vocab_size}), but reads "
            f"{' and '.join(head.inputs.columns)}: give a checkpoint that was trained on pairs"
        )
    longest = min(config.max_position_embeddings, tokenizer.model_max_length or config.max_position_embeddings)
    if spec.max_length is not None and spec.max_length > longest:
        raise ModelError(f"--max-length ({spec.max_length}) is above the model's {longest} tokens: lower it")
    max_length = spec.max_length or min(longest, head.default_max_length or longest)
    room = max_length - tokenizer.num_special_tokens_to_add(pair=len(head.inputs.columns) == 2)
    if room < 1:
        if spec.max_length is not None:
            raise ModelError(
                f"--max-length ({max_length}) leaves no token for the text beside the special ones: raise it"
            )
        raise ModelError(
            f"the {max_length} tokens that {source} takes at most leave none for the text beside the special ones: "
            "see max_position_embeddings in its config and model_max_length in its tokenizer's"
        )
    long_text = spec.long_text or head.long_text
    stride = 0
    if long_text == "window":
        stride = min(128, max_length // 2, room - 1) if spec.stride is None else spec.stride
        if stride >= room:
            raise ModelError(
                f"--stride ({stride}) leaves no room: a window of {max_length} tokens has {room} for the text"
            )
    return Encoding(
        name="",
        tokenizer="",
        fingerprint=fingerprint,
        inputs=head.inputs,
        max_length=max_length,
        long_text=long_text,
        stride=stride,
    )


def load_model(head: Head, url: str | Checkpoint, config: ConvBertConfig) -> PreTrainedModel:
    """A head's model with all its weights.

    Raises:
        ModelError: weights are missing: a random head labels nothing.
        ConvBertError: a checkpoint that cannot be read.
    """
    checkpoint = located(url)
    kind: type[PreTrainedModel] = getattr(convbert, head.architecture)
    model, report = kind.load(checkpoint, config=config)
    if report.missing:
        unused = f" (it holds {_some(report.unexpected)}, for which there is no use)" if report.unexpected else ""
        raise ModelError(
            f"{checkpoint.source} has no weights for {_some(report.missing)}{unused}: "
            "give a checkpoint that was trained for this task"
        )
    return model


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (" …" if len(names) > 3 else "")


_HEAD_SETTINGS: dict[str, dict[str, tuple[str, ...]]] = {
    "ConvBertForMultipleChoice": {"summary_type": ("last", "cls_index"), "summary_activation": ("linear",)},
    "ConvBertForSequenceClassification": {"problem_type": ("single_label_classification",)},
}
"""What decides a head's predictions and shows in no name and no shape, and the values that mean the same as none."""


def weights_fingerprint(model: PreTrainedModel) -> str:
    """Equal only where the same input gives the same predictions."""
    settings: list[Any] = [model.config.hidden_act, model.config.layer_norm_eps]  # others show in names and shapes
    own = {
        name: value
        for name, usual in _HEAD_SETTINGS.get(type(model).__name__, {}).items()
        if (value := getattr(model.config, name, None)) and value not in usual
    }
    if own:  # none in most models, whose fingerprint stands in manifests
        settings.append(own)
    weights = convbert.checkpoints.fingerprint(model.state_dict())
    return hashlib.sha256(f"{weights} {json.dumps(settings)}".encode()).hexdigest()
