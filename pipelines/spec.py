"""Flags and YAML in, one validated JobSpec out: what to read, which heads, where to write."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo

from pipelines.errors import SpecError
from pipelines.jsonl import is_unicode
from pipelines.partitions import Partitioning
from pipelines.storage import redacted

DEFAULT_ID_COLUMN = "id"
CUTS = 5  # version of how shards are cut into units and of parts' columns: in the recipe, raised when either changes
OWN_COLUMNS = ("id", "error")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_Url = Annotated[str, Field(min_length=1)]  # an empty one would be the current folder
_COMMA = re.compile(r",(?![^(]*\))")  # outside brackets


class Spec(BaseModel):
    """Settings that flags, YAML or Serve's arguments give: those without a field are refused, and ``true`` is no 1."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _is_no_truth_value(cls, value: Any, info: ValidationInfo) -> Any:
        annotation = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, bool) and {int, float} & {annotation, *get_args(annotation)}:
            raise ValueError("a number is wanted, not true or false")
        return value


class JobSpec(Spec):
    """One labelling job. Field names are the YAML keys and, with dashes, the flags.

    ``task`` is no flag: each script in jobs/ sets its own, and one of the heads must have it.

    Raises:
        SpecError: through ``JobSpec.of``, a value or combination that no job can have.
    """

    task: str | None = Field(None, description="task that the job is for, as its script says")
    input: list[_Url] = Field(
        min_length=1, description="file, folder or glob, local or any fsspec URL; may be repeated"
    )
    output: str = Field(min_length=1, description="folder for the labelled parts, local or any fsspec URL")
    model: str | None = Field(None, description="checkpoint folder or URL; short for --head prediction=URL")
    head: dict[str, _Url] = Field({}, description="NAME=URL: a checkpoint and the column it fills; may be repeated")
    text_column: str = Field("text", description="column with the text")
    text_pair_column: str | None = Field(None, description="column with a second text for classifiers of pairs")
    question_column: str = Field("question", description="column with the question")
    context_column: str = Field("context", description="column with the text that may hold the answer")
    choices_column: str = Field("choices", description="column with a list of texts that continue --text-column")
    id_column: str | None = Field(
        None, description="column with the record's id; without it 'id' is used where it exists"
    )
    keep_column: list[str] = Field([], description="input column to copy into the output; may be repeated")
    output_format: Literal["parquet", "arrow"] = Field("parquet", description="format of the parts")
    partition_by: str | None = Field(
        None, min_length=1, description="column of the input, or HEAD.label, whose values become folders COLUMN=value"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto takes GPUs where the cluster has them")
    precision: Literal["auto", "fp32", "bf16", "fp16", "int8"] = Field(
        "auto", description="auto: fp32 on a CPU, bf16 on a GPU (fp16 on one without bf16); int8 is for CPUs"
    )
    min_actors: int | None = Field(None, ge=1, description="fewest model actors")
    max_actors: int | None = Field(None, ge=1, description="most model actors")
    actor_cpus: int | None = Field(
        None,
        ge=1,
        description="CPUs for a model actor and the tasks that feed it (default: 8 beside a GPU, else a share of all)",
    )
    actor_nodes: list[str] = Field(
        [], description="KEY=VALUE,…: labels of the nodes for model actors; may be repeated, the most wanted first"
    )
    unit_rows: int | None = Field(
        None,
        ge=1,
        description="target rows of a work unit, which becomes one part (default: 5000, or 20000 for GPUs)",
    )
    max_batch_tokens: int | None = Field(None, ge=1, description="token budget of a micro-batch")
    long_text: Literal["truncate", "window", "error"] | None = Field(
        None, description="texts beyond the model's length (default: truncate; window for question answering)"
    )
    max_length: int | None = Field(
        None, ge=1, description="longest sequence in tokens (default: the model's; at most 384 for question answering)"
    )
    stride: int | None = Field(
        None, ge=0, description="tokens that neighbouring windows share (default: 128, at most half of the length)"
    )
    window_pooling: Literal["mean", "max"] = Field("mean", description="how a classifier joins its windows' logits")
    top_k: int | None = Field(
        None,
        ge=1,
        description="how many labels, answers or words for a [MASK] (default: all labels, 1 answer, 5 words)",
    )
    threshold: float = Field(0.5, ge=0, le=1, description="least score of the labels of a multi-label classifier")
    aggregation: Literal["none", "simple", "first", "average", "max", "words", "tokens"] = Field(
        "simple", description="how tokens become entities; words and tokens label each word or token instead"
    )
    ignore_label: list[str] = Field(["O"], description="label that makes no entity; may be repeated")
    max_answer_tokens: int = Field(15, ge=1, description="longest answer to a question")
    allow_no_answer: bool = Field(False, description="an empty answer where the model holds that for the likeliest")
    pseudo_log_likelihood: bool = Field(
        False, description="score texts instead of filling their masks: one run of the model for each token"
    )
    pooling: Literal["mean", "cls", "max"] = Field("mean", description="how tokens become an embedding")
    normalize: bool = Field(False, description="embeddings of length 1")
    embedding_type: Literal["float32", "float16"] = Field("float32", description="type of the embeddings' numbers")
    max_failed_fraction: float = Field(
        0.05, ge=0, le=1, description="share of failed records, of all or of tonight's, that fails the job"
    )
    dry_run: bool = Field(False, description="print what would be done, and stop")
    prune: bool = Field(False, description="drop the records of shards that are no longer among the inputs")
    overwrite: bool = Field(False, description="label everything anew, whatever the output holds")

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        lists = [name for name, field in cls.model_fields.items() if get_origin(field.annotation) is list]
        values = {**values, **{name: [values[name]] for name in lists if isinstance(values.get(name), str)}}
        if values.get("model"):
            if values.get("head"):
                raise ValueError("give --model URL or --head NAME=URL, not both")
            values["head"] = {"prediction": values["model"]}
        if isinstance(name := values.get("partition_by"), str):
            heads, kept = values.get("head"), values.get("keep_column") or []
            heads = heads if isinstance(heads, dict) else {}
            by = Partitioning.of(name, heads)
            if by and isinstance(kept, list) and by.column not in (*kept, *heads):
                values["keep_column"] = [*kept, by.column]  # what rows are parted by is kept
        return values

    @model_validator(mode="before")
    @classmethod
    def _can_be_written(cls, values: Any) -> Any:
        """No manifest holds half of a surrogate pair, or a byte that is none of UTF-8's."""
        for name, value in values.items() if isinstance(values, dict) else ():
            for text in value if isinstance(value, list) else [value]:
                if isinstance(text, str) and not is_unicode(text):
                    raise ValueError(f"{flag(str(name))} ({text!a}) holds what is no character: give it in UTF-8")
        return values

    @model_validator(mode="after")
    def _fits_together(self) -> JobSpec:
        if not self.head:
            raise ValueError("no model: give --model URL or --head NAME=URL")
        for name in self.head:
            if not _NAME.fullmatch(name):
                raise ValueError(
                    f"--head {name}=…: a name is letters, digits and underscores, and begins with a letter"
                )
        for name in self.keep_column:
            if name.startswith("__"):
                raise ValueError(f"--keep-column {name!r}: names that begin with two underscores are the job's own")
        if self.partitioning:
            self._check_partitioning(self.partitioning)
        columns = [*OWN_COLUMNS, *self.keep_column, *self.head]
        for name in columns:
            if columns.count(name) > 1:
                raise ValueError(
                    f"two output columns would be called {name!r}: rename a head or drop --keep-column {name}"
                )
        if self.min_actors and self.max_actors and self.min_actors > self.max_actors:
            raise ValueError(f"--min-actors ({self.min_actors}) is above --max-actors ({self.max_actors})")
        for labels in self.actor_nodes:
            node_labels(labels)
        return self

    def _check_partitioning(self, by: Partitioning) -> None:
        if by.field is None and by.column in (*OWN_COLUMNS, *self.head):
            raise ValueError(
                f"--partition-by {by.column}: give a column of the input, or a head's field such as prediction.label"
            )
        if by.field is not None and by.key in (*OWN_COLUMNS, *self.keep_column, *self.head):
            raise ValueError(
                f"--partition-by {self.partition_by}: there is a column {by.key!r} already: rename the head"
            )
        if by.key.startswith(("_", ".")):
            raise ValueError(f"--partition-by {by.key}: readers pass over folders that begin with {by.key[0]!r}")

    @property
    def partitioning(self) -> Partitioning | None:
        """What rows are parted by."""
        return Partitioning.of(self.partition_by, self.head)

    @classmethod
    def of(cls, values: dict[str, Any]) -> JobSpec:
        """Validate values by field name.

        Raises:
            SpecError: naming the flag, its value and the remedy.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise SpecError(first_fault(error, cls.model_fields, named=flag)) from error

    def recipe(self) -> dict[str, Any]:
        """The settings that decide what stands in a part, apart from its shard and the heads."""
        return {
            "id_column": self.id_column,
            "keep_column": list(self.keep_column),
            "output_format": self.output_format,
            "cuts": CUTS,
            **({"partition_by": self.partition_by} if self.partition_by else {}),  # older outputs know no such setting
        }


def flag(field: str) -> str:
    """The command-line flag of a JobSpec field."""
    return "--" + field.replace("_", "-")


def node_labels(labels: str) -> dict[str, str]:
    """``KEY=VALUE,…`` as Ray's label selectors want it; a value may be one of Ray's, such as ``in(A10G,L4)``.

    Raises:
        ValueError: a label without key or value.
    """
    pairs = [label.partition("=") for label in _COMMA.split(labels)]
    for key, _, value in pairs:
        if not key or not value:
            raise ValueError(f"--actor-nodes {labels}: give KEY=VALUE,… such as ray.io/accelerator-type=L4")
    return {key: value for key, _, value in pairs}


def read_config(path: str | Path) -> dict[str, Any]:
    """The fields that a YAML file sets; ``~`` in its path is the home.

    Raises:
        SpecError: no such file, or no mapping of fields in it.
    """
    try:
        values = yaml.load(Path(os.path.expanduser(path)).read_text(encoding="utf-8"), _Loader)  # a safe one
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise SpecError(f"--config {path} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise SpecError(f"--config {path} must hold 'field: value' lines such as 'input: [corpus/]'")
    fields = {str(key).replace("-", "_"): value for key, value in values.items()}
    if len(fields) < len(values):
        raise SpecError(f"--config {path} gives a field twice, with dashes and with underscores: leave one out")
    return fields


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice in a mapping: YAML's own takes the last in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if twice := next((key for key in keys if keys.count(key) > 1), None):
            line = node.start_mark.line + 1
            raise yaml.YAMLError(f"{twice!r} is given twice in what begins at line {line}: leave one out")
        return super().construct_mapping(node, deep)


def first_fault(error: ValidationError, fields: Mapping[str, FieldInfo], *, named: Callable[[str], str] = str) -> str:
    """What is wrong with the first wrong field: its name as ``named`` writes it, its value and the remedy."""
    first = error.errors()[0]
    message = first["msg"].removeprefix("Value error, ")
    if not first["loc"]:
        return message
    field = str(first["loc"][0])
    if first["type"] == "missing" and field in fields:
        return f"{named(field)} is missing: {fields[field].description}"
    if first["type"] == "extra_forbidden":
        return f"unknown setting {first['loc'][0]!r}: the settings are {', '.join(fields)}"
    return f"{named(field)} ({redacted(str(first['input']))}): {message}"
