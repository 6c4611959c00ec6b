"""Requests for heads in, what the nightly job would write for the same records out: the service's core, without Ray.

A request may ask any heads, each with settings of its own. Requests of one batch are tokenised together wherever their
way of encoding is the same, and run together wherever their encoder is; each is decoded by its own settings.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from convbert import ConvBertConfig, ConvBertTokenizer
from convbert.engine import Rows
from convbert.engine.packing import offsets_of
from pipelines.batching import Speed
from pipelines.columns import rows_of
from pipelines.culprits import sparing_culprits
from pipelines.decode import has_no_number, no_number
from pipelines.encode import Encoded, Encoding
from pipelines.errors import ModelError, SpecError
from pipelines.heads import Head, Results, head_for
from pipelines.models import EncoderPass, HeadPlan, encoding_for, heads_of, ignored_settings, share_passes
from pipelines.predict import Predictor
from pipelines.request_records import Record, checked_values, encode_values, estimated_tokens
from pipelines.sequences import Sequences, concatenated
from pipelines.spec import JobSpec
from pipelines.storage import redacted

MOST_WORDS = 100  # for a [MASK], that a request may ask for
MOST_CACHED = 128  # settings of requests
Settings = tuple[tuple[str, Any], ...]  # JobSpec fields and values, hashable
PROBLEMS = {"softmax": "single_label_classification", "sigmoid": "multi_label_classification", "none": "regression"}
"""The problem type under which a classifier scores its labels by each function."""


class RefusedError(Exception):
    """A request that no head can answer, and why: the message holds nothing of its texts."""


class UnknownHeadError(RefusedError):
    """No head has this name here, or one with another task."""


@dataclass(frozen=True)
class Request:
    """Records, and the heads to ask about each.

    Attributes:
        records: ``text``, ``text_pair``, ``question``, ``context`` or ``choices`` by name.
        heads: settings by head, sorted as ``settings_of`` makes them.
        tasks: what the answers are read as, by head; during a rollout a replica may have another task by that name.
    """

    records: tuple[Record, ...]
    heads: tuple[tuple[str, Settings], ...]
    tasks: tuple[tuple[str, str], ...] = ()


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
        SpecError, ModelError: a setting or a checkpoint that cannot work, or a setting that no head looks at.
    """
    passes = share_passes({name: (url, head_spec(url, settings.get(name, {}))) for name, url in heads.items()})
    every = {field: value for its in settings.values() for field, value in its.items() if field != "task"}
    if ignored := ignored_settings(head_spec("-", every), passes):
        raise SpecError(f"settings: no head of this service looks at {', '.join(ignored)}: leave it out")
    return passes


@dataclass(frozen=True, eq=False)
class _Variant:
    """A head with the settings of a request.

    Attributes:
        plan: names the head; its settings are the request's.
        encoding: how records become its input.
    """

    plan: HeadPlan
    encoding: Encoding


@dataclass(eq=False)
class _Asked:
    """A request on its way to its answer.

    Attributes:
        records: the request's.
        variants: the heads that it asks, by the encoding that they share.
        rows: for each record the structs found so far by head, or an ``error``.
        n_tokens: encoded so far.
        refusal: why it cannot be answered, or None.
    """

    records: Sequence[Record]
    variants: Mapping[Encoding, list[_Variant]]
    rows: list[dict[str, Any]]
    n_tokens: int = 0
    refusal: str | None = None

    def answer(self) -> Answer:
        rows = ({"error": row["error"]} if "error" in row else {"error": None, **row} for row in self.rows)
        return Answer(tuple(rows), self.n_tokens, self.refusal)


class _Found(NamedTuple):
    """What the models gave for some of the records of a batch.

    Attributes:
        records: (R,) their numbers, ascending.
        sequences: of the same records.
        texts: that the sequences' spans speak of.
        results: rows by head.
        errors: of records by their numbers; those who find more add them.
    """

    records: NDArray[np.int64]
    sequences: Sequences
    texts: list[Any]
    results: dict[str, Rows]
    errors: dict[int, str]

    @property
    def n_tokens(self) -> dict[int, int]:
        """Tokens of each of the records."""
        return dict(zip(self.records.tolist(), np.diff(self.sequences.tokens).tolist(), strict=True))

    def take(self, places: NDArray[np.int64]) -> _Found:
        """Some of the records."""
        if len(places) == len(self.records):
            return self
        return _Found(
            self.records[places],
            self.sequences.take(places),
            [self.texts[place] for place in places],
            {name: rows.take(places) for name, rows in self.results.items()},
            self.errors,
        )

    def sound(self) -> _Found:
        """The records without an error."""
        if not self.errors:
            return self
        return self.take(np.flatnonzero([record not in self.errors for record in self.records.tolist()]))


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
        # for who takes requests: a batch holds encode's own while it tokenises
        self._tokenizers = {name: ConvBertTokenizer.from_pretrained(plan.url) for name, plan in self._plans.items()}
        self._encoding_of = {plan.name: one.encoding for one in passes for plan in one.heads}
        for name in self._plans:
            self._check_tokenizer(name)
        self._variant = lru_cache(maxsize=MOST_CACHED)(self._make_variant)
        self._encodings = lru_cache(maxsize=MOST_CACHED)(self._make_encodings)
        loaded = [replace(one, heads=tuple(map(self._most_general, one.heads))) for one in passes]
        self._loaded = heads_of(loaded)
        self._predictors = {one.encoding.name: Predictor([one], **options) for one in loaded}
        self._worked: set[str] = set()  # those of them that have computed something since somebody asked

    def _check_tokenizer(self, name: str) -> None:
        """See that texts become the same tokens of a head as when it was planned."""
        plan, planned = self._plans[name], self._encoding_of[name]
        spec = head_spec(plan.url, self._settings.get(name, {}))
        tokenizer = self._tokenizers[name]
        fingerprint = tokenizer.fingerprint()
        now = encoding_for(plan.head, plan.config, tokenizer, spec, fingerprint=fingerprint, source=name)
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
        encodings = {
            encoding: self._tokenizers[variants[0].plan.name]
            for encoding, variants in self._encodings_of(request).items()
        }
        return [sum(estimated_tokens(record, *one) for one in encodings.items()) for record in request.records]

    def __call__(self, requests: Sequence[Request]) -> list[Answer]:
        """Each request's answer.

        Raises:
            RunError: a model fails on every record.
            DeviceError: only a new process can go on.
        """
        asked = [self._asked(request) for request in requests]
        together: dict[Encoding, list[_Asked]] = defaultdict(list)
        for one in asked:
            for encoding in one.variants:
                together[encoding].append(one)
        found = self._computed({encoding: self._encoded(encoding, its) for encoding, its in together.items()})
        for encoding, its in together.items():
            self._answer_together(encoding, its, found[encoding])
        return [one.answer() for one in asked]

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

    def _asked(self, request: Request) -> _Asked:
        try:
            variants = self._encodings_of(request)
        except RefusedError as error:
            return _Asked((), {}, [], refusal=str(error))
        return _Asked(request.records, variants, [{} for _ in request.records])

    def _encodings_of(self, request: Request) -> dict[Encoding, list[_Variant]]:
        for name, task in request.tasks:
            if name in self._plans and (own := self._plans[name].head.task) != task:
                raise UnknownHeadError(f"{name} is for {own} here, not for {task}")
        return self._encodings(request.heads)

    def _answer_together(self, encoding: Encoding, asked: Sequence[_Asked], found: _Found) -> None:
        """Fill in what the heads with this encoding say of the records of all these requests."""
        owners = np.repeat(np.arange(len(asked)), [len(one.records) for one in asked])
        rows = [row for one in asked for row in one.rows]
        for record, n_tokens in found.n_tokens.items():
            asked[owners[record]].n_tokens += n_tokens
        alike: dict[tuple[_Variant, ...], list[int]] = defaultdict(list)
        for number, one in enumerate(asked):
            alike[tuple(one.variants[encoding])].append(number)
        for variants, its in alike.items():
            theirs = found if len(alike) == 1 else found.take(np.flatnonzero(np.isin(owners[found.records], its)))
            self._fill(rows, theirs, variants)
        for record, error in found.errors.items():
            rows[record].setdefault("error", error)

    def _encoded(self, encoding: Encoding, asked: Sequence[_Asked]) -> _Found:
        """The records of all these requests as the model's input."""
        needs_spans = any(variant.encoding.needs_spans for one in asked for variant in one.variants[encoding])
        encoding = replace(encoding, needs_spans=needs_spans)
        records = [record for one in asked for record in one.records]
        values, reasons = checked_values(records, encoding)
        good = np.array([record for record, reason in enumerate(reasons) if reason is None], np.int64)

        def attempt(its: NDArray[np.int64]) -> tuple[NDArray[np.int64], Encoded]:
            return its, encode_values([[column[record] for record in its] for column in values], encoding)

        (its, encoded), errors = sparing_culprits(good, attempt, control=partial(attempt, good[:0]), what="encoding")
        errors |= {record: reason for record, reason in enumerate(reasons) if reason}
        errors |= {int(record): reason for record, reason in zip(its, encoded.reasons, strict=True) if reason}
        its = its[encoded.records]
        return _Found(its, encoded.sequences, [values[-1][record] for record in its], {}, errors).sound()

    def _computed(self, encoded: Mapping[Encoding, _Found]) -> dict[Encoding, _Found]:
        """The same with what the models give: of any number of encodings that a model reads in one go."""
        computed = dict(encoded)
        for name in dict.fromkeys(encoding.name for encoding in encoded):
            its = {encoding: one for encoding, one in encoded.items() if encoding.name == name and len(one.records)}
            if not its:
                continue
            offsets = offsets_of([len(one.records) for one in its.values()])
            sequences = concatenated([one.sequences for one in its.values()])
            labelled, failed = self._predictors[name].run(name, sequences)
            if len(labelled.records):
                self._worked.add(name)
            places = np.searchsorted(labelled.records, offsets)
            for number, (encoding, one) in enumerate(its.items()):
                first, last = offsets[number : number + 2]
                for place, error in failed.items():
                    if first <= place < last:
                        one.errors[int(one.records[place - first])] = error
                results = labelled.results
                if len(its) > 1:
                    own = np.arange(places[number], places[number + 1])
                    results = {head: rows.take(own) for head, rows in results.items()}
                computed[encoding] = one.sound()._replace(results=results)
        return computed

    def _fill(self, rows: Sequence[dict[str, Any]], found: _Found, variants: Sequence[_Variant]) -> None:
        """Put the structs of each record into its row, or note its error in ``found``."""
        if not len(found.records):
            return
        plans, results = [variant.plan for variant in variants], {}
        for plan in plans:
            values, offsets = found.results[plan.name]
            results[plan.name] = Rows(plan.head.narrowed(values, self._loaded[plan.name]), offsets)
            for record in found.records[has_no_number(results[plan.name])].tolist():
                found.errors.setdefault(record, no_number(plan.name))
        found = found._replace(results=results).sound()
        if not len(found.records):
            return
        for plan in plans:
            columns = plan.head.columns(Results(*found.results[plan.name], found.sequences, found.texts))
            for record, struct in zip(found.records.tolist(), rows_of(columns), strict=True):
                rows[record][plan.name] = struct

    def _most_general(self, plan: HeadPlan) -> HeadPlan:
        """The head with the settings under which the model gives enough for any request (``Head.narrowed``)."""
        own: Mapping[str, Any] = self._settings.get(plan.name, {})
        general: dict[str, dict[str, Any]] = {
            "token-classification": {"aggregation": "average"},
            "fill-mask": {"top_k": max(MOST_WORDS, head_spec(plan.url, own).top_k or 0)},
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
        own, config = self._encoding_of[name], copy.copy(self._plans[name].config)
        if function is not None:
            config.problem_type = PROBLEMS[function]
            if function == "softmax" and config.num_labels == 1:
                raise RefusedError(f"{name}: softmax gives its only label 1 whatever the text: use sigmoid or none")
        try:
            spec = head_spec(self._plans[name].url, values)
            head = self._head(name, spec, config)
            tokenizer = self._tokenizers[name]
            encoding = encoding_for(head, config, tokenizer, spec, fingerprint=own.fingerprint, source=name)
        except (SpecError, ModelError) as error:
            raise RefusedError(f"{name}: {str(error).replace('--', '')}") from error
        half = encoding.max_length // 2  # windows that overlap more come in any number
        if encoding.stride > half and {"stride", "max_length"} & dict(settings).keys():
            raise RefusedError(f"{name}: stride ({encoding.stride}) is above {half}, half of max_length: lower it")
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
