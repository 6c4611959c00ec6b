"""Requests for heads in, what the nightly job would write for the same records out: the service's core, without Ray.

A request may ask any heads, each with settings of its own. Requests of one batch are tokenised and run together
wherever their encoder and their way of encoding are the same; each is decoded by its own settings.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from operator import itemgetter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from convbert import ConvBertConfig, ConvBertTokenizer
from convbert.engine.packing import offsets_of
from pipelines.batching import Speed
from pipelines.culprits import good_rows, with_errors, without_culprits
from pipelines.decode import decode
from pipelines.encode import Encoding, encode
from pipelines.errors import ModelError, SpecError
from pipelines.heads import Head, head_for
from pipelines.models import EncoderPass, HeadPlan, encoding_for, share_passes
from pipelines.predict import N_TOKENS, RESULT, Predictor
from pipelines.read import Columns, text_name
from pipelines.sequences import list_column
from pipelines.spec import JobSpec
from pipelines.storage import redacted
from pipelines.values import checked_lists, checked_texts

MOST_WORDS = 100  # for a [MASK], that a request may ask for
MOST_CACHED = 128  # settings of requests
LEAST_NEW = 8  # a window of a pair adds this part of its length at least to the one before
Settings = tuple[tuple[str, Any], ...]  # JobSpec fields and values, hashable
Record = Mapping[str, Any]
PROBLEMS = {"softmax": "single_label_classification", "sigmoid": "multi_label_classification", "none": "regression"}
"""The problem type under which a classifier scores its labels by each function."""


class RefusedError(Exception):
    """A request that no head can answer, and why: the message holds nothing of its texts."""


class UnknownHeadError(RefusedError):
    """No head has this name here."""


@dataclass(frozen=True)
class Request:
    """Records, and the heads to ask about each.

    Attributes:
        records: ``text``, ``text_pair``, ``question``, ``context`` or ``choices`` by name.
        heads: settings by head, sorted as ``settings_of`` makes them.
    """

    records: tuple[Record, ...]
    heads: tuple[tuple[str, Settings], ...]


@dataclass(frozen=True)
class Answer:
    """What a request gets.

    Attributes:
        rows: for each record a struct by head, as the job writes it, or an ``error``.
        n_tokens: that were encoded.
        refusal: why the request as a whole cannot be answered, or None.
    """

    rows: tuple[dict[str, Any], ...] = ()
    n_tokens: int = 0
    refusal: str | None = None


def settings_of(values: Mapping[str, Any]) -> Settings:
    """Settings in a form that equal ones share."""
    return tuple(sorted((name, tuple(v) if isinstance(v, list) else v) for name, v in values.items()))


def head_spec(url: str, settings: Mapping[str, Any]) -> JobSpec:
    """A job of this head alone, whose columns have the names that requests use.

    Raises:
        SpecError: a setting that no job can have.
    """
    values = {name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()}
    return JobSpec.of({"input": ["requests"], "output": "answers", "model": url, **values})


def plan_service(heads: Mapping[str, str], settings: Mapping[str, Mapping[str, Any]]) -> list[EncoderPass]:
    """Encoder passes of heads given by their URLs, each with its own settings.

    Raises:
        SpecError, ModelError: a setting or a checkpoint that cannot work.
    """
    return share_passes({name: (url, head_spec(url, settings.get(name, {}))) for name, url in heads.items()})


@dataclass(frozen=True, eq=False)
class _Variant:
    """A head with the settings of a request.

    Attributes:
        plan: names the head; its settings are the request's.
        encoding: how records become its input.
    """

    plan: HeadPlan
    encoding: Encoding


class OnlinePredictor:
    """Loads the models once, then answers batch after batch of requests.

    Args:
        passes: as planned by ``plan_service``.
        settings: of each head, as planned.
        device, precision, max_batch_tokens, n_threads: the Predictor's.

    Raises:
        ModelError: a checkpoint is not the one that was planned with, or does not run on the device.
    """

    def __init__(
        self, passes: Sequence[EncoderPass], *, settings: Mapping[str, Mapping[str, Any]] | None = None, **options: Any
    ) -> None:
        self._settings = settings or {}
        self._plans = {plan.name: plan for one in passes for plan in one.heads}
        self._tokenizers = {name: ConvBertTokenizer.from_pretrained(plan.url) for name, plan in self._plans.items()}
        self._pass_of = {plan.name: one.encoding for one in passes for plan in one.heads}
        for name in self._plans:
            self._check_tokenizer(name)
        self._variant = lru_cache(maxsize=MOST_CACHED)(self._make_variant)
        self._encodings = lru_cache(maxsize=MOST_CACHED)(self._make_encodings)
        loaded = [replace(one, heads=tuple(map(self._most_general, one.heads))) for one in passes]
        self._loaded = {plan.name: plan.head for one in loaded for plan in one.heads}
        self._predictors = {one.encoding.name: Predictor([one], **options) for one in loaded}
        self._worked: set[str] = set()  # those of them that have computed something since somebody asked

    def _check_tokenizer(self, name: str) -> None:
        """See that texts become the same tokens of a head as when it was planned."""
        plan, planned = self._plans[name], self._pass_of[name]
        spec = head_spec(plan.url, self._settings.get(name, {}))
        now = encoding_for(plan.head, plan.config, self._tokenizers[name], spec, source=name)
        if (now.fingerprint, now.max_length, now.stride) != (planned.fingerprint, planned.max_length, planned.stride):
            raise ModelError(
                f"{name}: the tokenizer at {redacted(plan.url)} has changed since the service was planned: "
                "start it again"
            )

    @property
    def max_batch_tokens(self) -> int:
        """Token budget of a micro-batch, as given or as found for the device."""
        return min(predictor.max_batch_tokens for predictor in self._predictors.values())

    def estimated_tokens(self, request: Request) -> list[int]:
        """About how many tokens each record becomes, in all encoder passes that the request needs.

        Raises:
            RefusedError: no head can answer it.
        """
        encodings = list(self._encodings(request.heads))
        return [sum(estimated_tokens(record, encoding) for encoding in encodings) for record in request.records]

    def __call__(self, requests: Sequence[Request]) -> list[Answer]:
        """Each request's answer.

        Raises:
            RunError: a model fails on every record.
            DeviceError: only a new process can go on.
        """
        asked: dict[int, Mapping[Encoding, list[_Variant]]] = {}
        answers: dict[int, Answer] = {}
        for number, request in enumerate(requests):
            try:
                asked[number] = self._encodings(request.heads)
            except RefusedError as error:
                answers[number] = Answer(refusal=str(error))
        together: dict[Encoding, list[int]] = defaultdict(list)
        for number, encodings in asked.items():
            for encoding in encodings:
                together[encoding].append(number)
        rows: dict[int, list[dict[str, Any]]] = {number: [{} for _ in requests[number].records] for number in asked}
        n_tokens = dict.fromkeys(asked, 0)
        for encoding, numbers in together.items():
            self._answer_together(encoding, numbers, requests, asked, rows, n_tokens)
        for number in asked:
            done = tuple({"error": row["error"]} if row.get("error") else row for row in rows[number])
            answers[number] = Answer(done, n_tokens[number])
        return [answers[number] for number in range(len(requests))]

    def speed(self) -> Speed:
        """As fast as full micro-batches are, the faster of two each: the machine may be busy with a start just now."""
        speed = Speed()
        for predictor in self._predictors.values():
            n_tokens, seconds = min((predictor.time_batch() for _ in range(2)), key=itemgetter(1))
            speed.n_tokens += n_tokens
            speed.seconds += seconds
        return speed

    def check(self) -> None:
        """Run the shortest input through every encoder that has not computed anything since this was last asked.

        Raises:
            Exception: it does not work any more.
        """
        worked, self._worked = self._worked, set()
        for name, predictor in self._predictors.items():
            if name not in worked:
                predictor.check()

    def _answer_together(
        self,
        encoding: Encoding,
        numbers: Sequence[int],
        requests: Sequence[Request],
        asked: Mapping[int, Mapping[Encoding, list[_Variant]]],
        rows: Mapping[int, list[dict[str, Any]]],
        n_tokens: dict[int, int],
    ) -> None:
        """Fill in what the heads with this encoding say."""
        needs_spans = any(variant.encoding.needs_spans for number in numbers for variant in asked[number][encoding])
        encoding_now = replace(encoding, needs_spans=needs_spans)
        records = [record for number in numbers for record in requests[number].records]
        block = as_block(records, encoding)
        tokenizer = self._tokenizers[asked[numbers[0]][encoding][0].plan.name]
        block = without_culprits(block, partial(_encoded, encoding=encoding_now, tokenizer=tokenizer), what="encoding")
        block = self._predictors[encoding.name](block)
        if pc.any(pc.greater(block[N_TOKENS], 0)).as_py():
            self._worked.add(encoding.name)
        places = offsets_of([len(requests[number].records) for number in numbers])
        alike: dict[tuple[_Variant, ...], list[int]] = defaultdict(list)
        for place, number in enumerate(numbers):
            alike[tuple(asked[number][encoding])].append(place)
        for variants, its in alike.items():
            picked = np.concatenate([np.arange(places[place], places[place + 1]) for place in its])
            theirs = block if len(its) == len(numbers) else block.take(pa.array(picked))
            decoded = self._decoded(theirs, encoding_now, variants).to_pylist()
            targets = [(numbers[place], row) for place in its for row in range(places[place + 1] - places[place])]
            for (number, row), found in zip(targets, decoded, strict=True):
                n_tokens[number] += found["__tokens"]
                target = rows[number][row]
                target["error"] = target.get("error") or found["error"]
                for variant in variants:
                    target[variant.plan.name] = found[variant.plan.name]

    def _decoded(self, block: pa.Table, encoding: Encoding, variants: Sequence[_Variant]) -> pa.Table:
        if len(good_rows(block)):
            for variant in variants:
                block = _narrowed(block, variant.plan, self._loaded[variant.plan.name])
        return decode(block, [EncoderPass(encoding, tuple(variant.plan for variant in variants))])

    def _most_general(self, plan: HeadPlan) -> HeadPlan:
        """The head whose part of the model gives what any setting needs."""
        own: Mapping[str, Any] = self._settings.get(plan.name, {})
        general: dict[str, dict[str, Any]] = {
            "token-classification": {"aggregation": "average"},
            "fill-mask": {"top_k": max(MOST_WORDS, own.get("top_k") or 0)},
        }
        settings = {**own, **general.get(plan.head.task, {})}
        return replace(plan, head=self._head(plan.name, head_spec(plan.url, settings)))

    def _make_encodings(self, heads: tuple[tuple[str, Settings], ...]) -> dict[Encoding, list[_Variant]]:
        return _by_encoding([self._variant(name, settings) for name, settings in heads])

    def _make_variant(self, name: str, settings: Settings) -> _Variant:
        if name not in self._plans:
            raise UnknownHeadError(f"no head is called {name!r}: there are {', '.join(self._plans)}")
        values = {**self._settings.get(name, {}), **dict(settings)}
        function = values.pop("function_to_apply", None)
        config = copy.copy(self._plans[name].config)
        if function is not None:
            config.problem_type = PROBLEMS[function]
        try:
            spec = head_spec(self._plans[name].url, values)
            head = self._head(name, spec, config)
            encoding = encoding_for(head, config, self._tokenizers[name], spec, source=name)
        except (SpecError, ModelError) as error:
            raise RefusedError(f"{name}: {str(error).replace('--', '')}") from error
        half = encoding.max_length // 2  # windows that overlap more come in any number
        if encoding.stride > half and {"stride", "max_length"} & dict(settings).keys():
            raise RefusedError(f"{name}: stride ({encoding.stride}) is above {half}, half of max_length: lower it")
        own = self._pass_of[name]
        encoding = replace(
            encoding,
            name=own.name,
            tokenizer=own.tokenizer,
            needs_spans=head.needs_spans,
            needs_mask=head.needs_mask,
        )
        return _Variant(replace(self._plans[name], head=head, settings=dict(settings)), encoding)

    def _head(self, name: str, spec: JobSpec, config: ConvBertConfig | None = None) -> Head:
        return head_for(config or self._plans[name].config, self._tokenizers[name], spec, source=name)


def _by_encoding(variants: Sequence[_Variant]) -> dict[Encoding, list[_Variant]]:
    """A request's variants that can share a pass; where one of them needs a [MASK], all of them do, as in a job."""
    groups: dict[Encoding, list[_Variant]] = defaultdict(list)
    for variant in variants:
        groups[replace(variant.encoding, needs_spans=False, needs_mask=False)].append(variant)
    return {
        replace(encoding, needs_mask=any(variant.encoding.needs_mask for variant in its)): its
        for encoding, its in groups.items()
    }


def estimated_tokens(record: Record, encoding: Encoding) -> int:
    """About as many tokens as the record becomes: a word piece is some four letters, or one character of Chinese."""
    first, *others = (_n_pieces(record.get(name)) for name in encoding.inputs.columns)
    second = others[0] if others else []
    n_first = max(first, default=0)
    n_tokens = 2 + n_first + (1 + max(second, default=0) if others else 0)
    if encoding.long_text != "window":
        n_tokens = min(n_tokens, encoding.max_length)
    elif n_tokens > encoding.max_length:
        n_new = encoding.max_length - encoding.stride - (n_first if others else 0)
        n_tokens = n_tokens * encoding.max_length // max(n_new, encoding.max_length // LEAST_NEW, 1)
    return n_tokens * (len(second) if encoding.inputs.kind == "choices" else 1)


def _n_pieces(value: Any) -> list[int]:
    """About how many word pieces a text has, or each of a list of texts: more where a character has several bytes."""
    texts = [text for text in (value if isinstance(value, list) else [value]) if isinstance(text, str)]
    return [(2 * len(text.encode(errors="surrogatepass")) - len(text)) // 4 for text in texts]


def as_block(records: Sequence[Record], encoding: Encoding) -> pa.Table:
    """Records as the block that reading a shard gives, and an error for each that cannot be encoded."""
    names = encoding.inputs.columns
    lists = names[1:] if encoding.inputs.kind == "choices" else ()
    columns = Columns(tuple(name for name in names if name not in lists), None, pa.schema([]), tuple(lists))
    arrays: dict[str, pa.Array] = {}
    reasons = []
    for name in names:
        check = checked_lists if name in columns.lists else checked_texts
        values, why = check([record.get(name) for record in records], name)
        type_ = pa.large_list(pa.large_string()) if name in columns.lists else pa.large_string()
        arrays[text_name(name)] = pa.array(values, type_)
        reasons.append(why)
    errors = ["; ".join(reason for reason in row if reason) or None for row in zip(*reasons, strict=True)]
    return pa.table({**arrays, "error": pa.array(errors, pa.string())})


def _encoded(block: pa.Table, encoding: Encoding, tokenizer: ConvBertTokenizer) -> pa.Table:
    """The block as tokenising makes it in a job, and an error where a job would make any number of windows."""
    if encoding.long_text == "window" and len(encoding.inputs.columns) == 2:
        block = with_errors(block, _crowded(block, encoding, tokenizer))
    return encode(block, [encoding])


def _crowded(block: pa.Table, encoding: Encoding, tokenizer: ConvBertTokenizer) -> dict[int, str]:
    """Rows whose first text would leave a long second one so little room that it became any number of windows."""
    first, second = encoding.inputs.columns
    rows = good_rows(block)
    firsts, seconds = (block[text_name(name)].take(pa.array(rows)).to_pylist() for name in (first, second))
    room = encoding.max_length - encoding.stride - encoding.max_length // LEAST_NEW - 1  # for its last special token
    lengths = [len(ids) for ids in tokenizer.encode_batch(firsts).input_ids]
    long = [place for place, length in enumerate(lengths) if length > room]
    pairs = tokenizer.encode_batch([firsts[place] for place in long], [seconds[place] for place in long]).input_ids
    return {
        int(rows[place]): f"{first} has {lengths[place]} tokens, above the limit of {room} beside a long {second}: "
        "shorten it"
        for place, ids in zip(long, pairs, strict=True)
        if len(ids) > encoding.max_length
    }


def _narrowed(block: pa.Table, plan: HeadPlan, loaded: Head) -> pa.Table:
    """The block with what the plan's own head would have given."""
    name = RESULT + plan.name
    column = block[name].combine_chunks()
    flat = column.flatten()
    values = flat.flatten().to_numpy().reshape(len(flat), flat.type.list_size)
    narrow = plan.head.narrowed(values, loaded)
    if narrow is values:
        return block
    lists = pa.FixedSizeListArray.from_arrays(pa.array(narrow.ravel(), pa.float32()), narrow.shape[1])
    rows = np.flatnonzero(column.is_valid())
    counts = column.value_lengths().drop_null().to_numpy()
    return block.set_column(block.schema.get_field_index(name), name, list_column(lists, counts, rows, len(block)))
