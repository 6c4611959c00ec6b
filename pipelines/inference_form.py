"""A request in Hugging Face's inference form in, records and settings out; and a head's rows in that form again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipelines.heads.masked_lm import USUAL_WORDS
from pipelines.online import MOST_WORDS, RefusedError

EVERY_LABEL = 2**31  # more than any model has
LEAST_WINDOW = 32  # tokens: a text becomes the more windows, the shorter they are
MOST_ANSWER_CHARACTERS = 10_000_000  # a word for a mask comes with its whole text, an answer may be all of its context
MOST_WORDS_OF_LABEL = 100_000  # of an answer of /label, which takes some 50 bytes for each
Label = Annotated[str, Field(max_length=200)]


class Closed(BaseModel):
    """What takes no other names than its own; one that is too many is told, and not each of a million."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _one_is_enough(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        other = next((name for name in values if name not in cls.model_fields), None)
        return {name: value for name, value in values.items() if name in cls.model_fields or name == other}


class _Parameters(Closed):
    """None, unless a task has some."""

    model_config = ConfigDict(strict=True)

    def settings(self) -> dict[str, Any]:
        """The JobSpec fields that they stand for."""
        return {}


class _TextClassification(_Parameters):
    top_k: int | None = Field(None, ge=1)
    function_to_apply: Literal["sigmoid", "softmax", "none"] | None = None

    def settings(self) -> dict[str, Any]:
        return {"top_k": EVERY_LABEL, **_given(function_to_apply=self.function_to_apply)}  # shaped() cuts


class _TokenClassification(_Parameters):
    aggregation_strategy: Literal["none", "simple", "first", "average", "max"] | None = None
    ignore_labels: list[Label] | None = Field(None, max_length=1000, fail_fast=True)
    stride: int | None = Field(None, ge=0)

    def settings(self) -> dict[str, Any]:
        return _given(
            aggregation=self.aggregation_strategy,
            ignore_label=self.ignore_labels,
            stride=self.stride,
            long_text=None if self.stride is None else "window",
        )


class _QuestionAnswering(_Parameters):
    top_k: int | None = Field(None, ge=1, le=1000)
    max_answer_len: int | None = Field(None, ge=1)
    max_seq_len: int | None = Field(None, ge=LEAST_WINDOW)
    doc_stride: int | None = Field(None, ge=0)
    handle_impossible_answer: bool | None = None
    align_to_words: Literal[True] | None = None

    def settings(self) -> dict[str, Any]:
        return _given(
            top_k=self.top_k,
            max_answer_tokens=self.max_answer_len,
            max_length=self.max_seq_len,
            stride=self.doc_stride,
            long_text=None if self.doc_stride is None else "window",
            allow_no_answer=self.handle_impossible_answer,
        )


class _FillMask(_Parameters):
    top_k: int | None = Field(None, ge=1, le=MOST_WORDS)

    def settings(self) -> dict[str, Any]:
        return _given(top_k=self.top_k)


class _FeatureExtraction(_Parameters):
    normalize: bool | None = None
    truncate: bool | None = None
    truncation_direction: Literal["left", "right"] | None = None  # check_direction compares it
    encoding_format: Literal["float"] | None = None

    def settings(self) -> dict[str, Any]:
        long_text = None if self.truncate is None else "truncate" if self.truncate else "error"
        return _given(normalize=self.normalize, long_text=long_text)


_TASKS: dict[str, tuple[type[_Parameters], tuple[str, ...], str]] = {
    "text-classification": (_TextClassification, ("text", "text_pair"), "a string or {text, text_pair}"),
    "token-classification": (_TokenClassification, ("text",), "a string"),
    "question-answering": (_QuestionAnswering, ("question", "context"), "{question, context}"),
    "fill-mask": (_FillMask, ("text",), "a string"),
    "feature-extraction": (_FeatureExtraction, ("text",), "a string"),
    "multiple-choice": (_Parameters, ("text", "choices"), "{text, choices}"),
}


def records_of(task: str, inputs: Any) -> list[dict[str, Any]]:
    """One record, or several of one kind.

    Raises:
        RefusedError: they are not what the task reads.
    """
    _, names, form = _TASKS[task]
    records = []
    for value in inputs if isinstance(inputs, list) else [inputs]:
        if isinstance(value, str) and names[0] == "text" and "choices" not in names:
            records.append({"text": value})
        elif isinstance(value, dict) and names[0] in value and set(value) <= set(names):
            records.append(value)
        else:
            raise RefusedError(f"inputs: give {form}, or a list of such, for {task}")
        for name, item in records[-1].items():
            if any(isinstance(one, (dict, list)) for one in (item if isinstance(item, list) else [item])):
                raise RefusedError(f"inputs: {name} holds lists or objects: give {form}, or a list of such, for {task}")
    if not records:
        raise RefusedError("inputs is empty")
    if len({frozenset(record) for record in records}) > 1:
        raise RefusedError("inputs: give either pairs or texts, not both")
    return records


def settings_from(task: str, parameters: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """JobSpec fields that parameters and records ask for.

    Raises:
        RefusedError: a parameter that the task does not have, or a value that it cannot have.
    """
    model = _TASKS[task][0]
    try:
        known = model.model_validate({name: value for name, value in parameters.items() if value is not None})
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        name = ascii(next(iter(first["loc"]), "a name")).strip("'")[:40]
        if first["type"] == "extra_forbidden":
            names = ", ".join(model.model_fields) or "none"
            raise RefusedError(f"parameters: {name!r} is not one for {task}: there are {names}") from None
        raise RefusedError(f"parameters: {name}: {first['msg']}") from None
    pairs = {"text_pair_column": "text_pair"} if "text_pair" in records[0] else {}
    return {**known.settings(), **pairs}


def check_direction(parameters: Mapping[str, Any], *, head: Mapping[str, Any]) -> None:
    """See that the request wants texts cut at the end where the head's tokenizer cuts them.

    Raises:
        RefusedError: at the other one.
    """
    direction = parameters.get("truncation_direction")
    if direction is not None and direction != head["truncation_side"]:
        raise RefusedError(
            f"parameters: truncation_direction: the tokenizer of {head['name']} cuts texts on the "
            f"{head['truncation_side']}: leave it out, or send them cut"
        )


def check_answer(
    task: str, records: Sequence[Mapping[str, Any]], settings: Mapping[str, Any], *, head: Mapping[str, Any]
) -> None:
    """See that the answer is not thousands of times the request.

    Raises:
        RefusedError: it may be.
    """
    if task not in ("fill-mask", "question-answering"):
        return
    column = _TASKS[task][1][-1]
    texts = [text for record in records if isinstance(text := record.get(column), str)]
    masks = [1] * len(texts)
    if task == "fill-mask":
        masks = [text.count(head["mask_token"]) for text in texts]
    top_k = settings.get("top_k") or head.get("top_k") or (USUAL_WORDS if task == "fill-mask" else 1)
    size = top_k * sum(len(text) * n for text, n in zip(texts, masks, strict=True))
    if size > MOST_ANSWER_CHARACTERS:
        raise RefusedError(
            f"parameters: the answer may have {size:,} characters, above the limit of {MOST_ANSWER_CHARACTERS:,}: "
            "lower top_k, or give fewer or shorter texts"
        )


def check_words(records: Sequence[Mapping[str, Any]], heads: Sequence[Mapping[str, Any]]) -> None:
    """See that the words that heads give for the masks of texts, as a job writes them, are not without end.

    Raises:
        RefusedError: they may be.
    """
    n_words = sum(
        (head.get("top_k") or USUAL_WORDS) * record["text"].count(head["mask_token"])
        for head in heads
        if head["task"] == "fill-mask"
        for record in records
    )
    if n_words > MOST_WORDS_OF_LABEL:
        raise RefusedError(
            f"texts: the answer may have {n_words:,} words for their masks, above the limit of "
            f"{MOST_WORDS_OF_LABEL:,}: give fewer texts or masks"
        )


def shaped(
    task: str,
    rows: Sequence[Mapping[str, Any]],
    records: Sequence[Mapping[str, Any]],
    *,
    head: Mapping[str, Any],
    parameters: Mapping[str, Any],
    is_list: bool,
) -> Any:
    """What a head found, as clients of the inference form expect it.

    Args:
        rows: structs of the head, one for each of the records.
        head: its account in ``/info``: ``aggregation``, ``mask_token``, ``truncation_side``.
        is_list: the request gave a list.
    """
    if task == "text-classification":
        return [row["top"][: parameters.get("top_k")] for row in rows]  # nested even for one text
    if task == "feature-extraction":
        return [row["embedding"] for row in rows]  # nested even for one text
    if task == "token-classification":
        aggregation = parameters.get("aggregation_strategy") or head["aggregation"]
        name = "entity" if aggregation in ("none", "words", "tokens") else "entity_group"
        found: list[Any] = [_entities(row, name) for row in rows]
    elif task == "question-answering":
        found = [_answers(row) for row in rows]
    elif task == "fill-mask":
        found = [_words(row, record["text"], head=head) for row, record in zip(rows, records, strict=True)]
    else:
        found = list(rows)
    return found if is_list else found[0]


def _entities(row: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    return [
        {name: one["label"], "score": one["score"], "word": one["text"], "start": one["start"], "end": one["end"]}
        for one in row["entities"]
    ]


def _answers(row: Mapping[str, Any]) -> Any:
    return row.get("answers") or {name: row[name] for name in ("answer", "score", "start", "end")}


def _words(row: Mapping[str, Any], text: str, *, head: Mapping[str, Any]) -> list[Any]:
    """The words for each mask, or for the only one; each with the text in which it stands."""
    mask_token = head["mask_token"]
    parts = text.split(mask_token)
    is_cut_before = head["truncation_side"] == "left"  # then the masks that are read are the last ones
    masks = []
    for place, words in enumerate(row["masks"], start=len(parts) - 1 - len(row["masks"]) if is_cut_before else 0):
        before, after = mask_token.join(parts[: place + 1]), mask_token.join(parts[place + 1 :])
        masks.append(
            [
                {
                    "score": word["score"],
                    "token": word["id"],
                    "token_str": word["token"],
                    "sequence": f"{before}{word['token']}{after}",
                }
                for word in words
            ]
        )
    return masks[0] if len(masks) == 1 else masks


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
