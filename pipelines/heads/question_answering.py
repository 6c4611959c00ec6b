"""Question answering: how well each token begins and ends the answer in, the answer and its place out."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from convbert import ConvBertConfig, ConvBertTokenizer, engine
from convbert.engine.packing import Indices, offsets_of
from pipelines.columns import Column, Lists
from pipelines.encode import Inputs
from pipelines.figures import Histogram, shares
from pipelines.heads.base import Head, Results
from pipelines.spec import JobSpec

if TYPE_CHECKING:
    from convbert import ConvBertForQuestionAnswering

_ANSWER = [
    pa.field("answer", pa.string()),  # characters of the context; empty where there is no answer
    pa.field("score", pa.float32()),  # probability of its start times that of its end, within its window
    pa.field("start", pa.int32()),  # first character in the context
    pa.field("end", pa.int32()),  # last character + 1
]


class Answer(NamedTuple):
    """A stretch of the context."""

    answer: str
    score: float
    start: int
    end: int


class _Window(NamedTuple):
    """The likeliest stretches of a window of a context.

    Attributes:
        spans: (C, 3) of its tokens of the context.
        firsts, lasts, scores: (K,) of the stretches, the best first.
    """

    spans: NDArray[np.int32]
    firsts: Indices
    lasts: Indices
    scores: NDArray[np.float64]

    def answer(self, place: int, text: str) -> Answer:
        """One of them, whole words."""
        start, end = _whole_words(self.spans, int(self.firsts[place]), int(self.lasts[place]))
        return Answer(text[start:end], float(self.scores[place]), start, end)


class QuestionAnswering(Head):
    """The likeliest stretch of the context, whole words, as Transformers' pipeline finds it.

    A long context is read in windows, each with the whole question; scores of different windows are compared
    as they are. ``no_answer`` is the least that any window gives to an empty answer.
    """

    task = "question-answering"
    architecture = "ConvBertForQuestionAnswering"
    settings = ("top_k", "max_answer_tokens", "allow_no_answer")
    long_text = "window"
    default_max_length = 384
    needs_spans = True

    def __init__(self, config: ConvBertConfig, tokenizer: ConvBertTokenizer, spec: JobSpec) -> None:
        self.inputs = Inputs("question", (spec.question_column, spec.context_column))
        self.labels = []
        self.cls_id = tokenizer.cls_token_id
        self.top_k = spec.top_k or 1
        self.max_answer_tokens = spec.max_answer_tokens
        self.allow_no_answer = spec.allow_no_answer
        fields = [*_ANSWER, pa.field("no_answer", pa.float32())]  # score of an empty answer
        if self.top_k > 1:
            fields.append(pa.field("answers", pa.list_(pa.struct(_ANSWER))))  # the --top-k best, the best first
        self.schema = pa.struct(fields)

    def on_encoder(self, model: ConvBertForQuestionAnswering) -> engine.Head:
        """A start and an end logit for each token."""
        return engine.EachToken(model.qa_outputs)

    def columns(self, results: Results) -> dict[str, Column]:
        """Start and end logits (T, 2) -> R values each."""
        found = [self._answers(results, record) for record in range(len(results.offsets) - 1)]
        columns = _columns([answers[0] for answers, _ in found])
        columns["no_answer"] = np.array([no_answer for _, no_answer in found], np.float32)
        if self.top_k > 1:
            every = _columns([answer for answers, _ in found for answer in answers])
            columns["answers"] = Lists(every, offsets_of([len(answers) for answers, _ in found]))
        return columns

    def _answers(self, results: Results, record: int) -> tuple[list[Answer], float]:
        """A record's best answers over all its windows, and the score of none."""
        sequences = results.sequences
        assert results.texts is not None
        assert sequences.spans is not None  # both asked for with needs_spans
        windows: list[_Window] = []
        no_answer = 1.0
        for window in range(sequences.records[record], sequences.records[record + 1]):
            rows = slice(sequences.packed.offsets[window], sequences.packed.offsets[window + 1])
            spans = sequences.spans[rows]
            is_context = spans[:, 2] >= 0
            is_cls = sequences.packed.input_ids[rows] == self.cls_id
            starts, ends = _softmax(results.values[rows], is_context | is_cls)
            no_answer = min(no_answer, float(starts[0] * ends[0]))
            context = np.flatnonzero(is_context)
            windows.append(self._window(spans[context], starts[context], ends[context]))
        offsets = offsets_of([len(window.scores) for window in windows])
        best = np.argsort(-np.concatenate([window.scores for window in windows]), kind="stable")[: self.top_k]
        owners = np.searchsorted(offsets, best, side="right") - 1
        text = results.texts[record]
        answers = [
            windows[owner].answer(place, text) for owner, place in zip(owners, best - offsets[owners], strict=True)
        ]
        if self.allow_no_answer:
            answers.append(Answer("", no_answer, 0, 0))
        return sorted(answers, key=lambda answer: -answer.score)[: self.top_k], no_answer

    def _window(self, spans: NDArray[np.int32], starts: NDArray[np.float64], ends: NDArray[np.float64]) -> _Window:
        """The likeliest stretches of C tokens, each of which begins and ends them with these probabilities (C,)."""
        longest = min(self.max_answer_tokens, len(starts))
        reach = sliding_window_view(np.append(ends, np.zeros(longest - 1)), longest)  # (C, longest)
        scores = (starts[:, None] * reach).ravel()
        n_found = min(self.top_k, len(scores))
        best = np.sort(np.argpartition(-scores, n_found - 1)[:n_found]) if n_found > 1 else np.array([scores.argmax()])
        best = best[np.argsort(-scores[best], kind="stable")]
        firsts, further = np.divmod(best, longest)
        is_inside = firsts + further < len(starts)
        return _Window(spans, firsts[is_inside], (firsts + further)[is_inside], scores[best[is_inside]])

    def counts(self, column: pa.StructArray) -> dict[str, int]:
        """Records with and without an answer."""
        texts = column.field("answer").drop_null().to_pylist()
        n_answers = sum(bool(text) for text in texts)
        return {"answer": n_answers, "no answer": len(texts) - n_answers}

    def scores(self, column: pa.StructArray) -> dict[str, Histogram]:
        """The score of the answer, and that of none."""
        return {name: shares(column.field(name)) for name in ("score", "no_answer")}


def _softmax(logits: NDArray[np.float32], is_candidate: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(L, 2) -> start and end probabilities (2, L) over the candidates."""
    masked = np.where(is_candidate[:, None], logits, -np.inf).T.astype(np.float64)
    powers = np.exp(masked - masked.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def _whole_words(spans: NDArray[np.int32], first: int, last: int) -> tuple[int, int]:
    """The characters from the beginning of the first token's word to the end of the last one's."""
    words = spans[:, 2]
    while first > 0 and words[first - 1] == words[first]:
        first -= 1
    while last < len(words) - 1 and words[last + 1] == words[last]:
        last += 1
    return int(spans[first, 0]), int(spans[last, 1])


def _columns(answers: list[Answer]) -> dict[str, Column]:
    texts, scores, starts, ends = zip(*answers, strict=True)
    return {
        "answer": texts,
        "score": np.array(scores, np.float32),
        "start": np.array(starts, np.int32),
        "end": np.array(ends, np.int32),
    }
