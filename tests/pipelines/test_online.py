from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import transformers

from convbert import ConvBertTokenizer
from pipelines.encode import Encoded, Encoding, encode_records
from pipelines.errors import ModelError, SpecError
from pipelines.inference_form import settings_from
from pipelines.models import plan_passes
from pipelines.online import Answer, OnlinePredictor, Request, UnknownHeadError, plan_service, settings_of
from pipelines.predict import Predictor
from tests.conftest import save_checkpoint, with_labels
from tests.pipelines.breaking import break_the_encoder, spoil_the_results, zebra
from tests.pipelines.labelling import job, label

WORDS = ["the", "free", "mail", "offer", "now", "offering", "zebra", "x", "12", "!", "Ünïcode", "日本", "👍", "[MASK]"]
BUDGET = 1024  # tokens
LABELS = with_labels("O", "B-PER", "I-PER", "B-LOC")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One checkpoint for each task; all but the question answerer share their encoder's weights."""
    folder = tmp_path_factory.mktemp("online")
    made = {
        "spam": save_checkpoint(folder / "spam", **with_labels("ham", "spam", "news")),
        "names": save_checkpoint(folder / "names", architecture="ConvBertForTokenClassification", **LABELS),
        "words": save_checkpoint(folder / "words", architecture="ConvBertForMaskedLM"),
        "answers": save_checkpoint(folder / "answers", architecture="ConvBertForQuestionAnswering", seed=4),
        "vectors": save_checkpoint(folder / "vectors", architecture="ConvBertModel"),
        "choices": save_checkpoint(folder / "choices", architecture="ConvBertForMultipleChoice"),
    }
    encoder = transformers.ConvBertForSequenceClassification.from_pretrained(made["spam"]).convbert.state_dict()
    for name in ("names", "words"):
        model = getattr(transformers, {"names": "ConvBertForTokenClassification", "words": "ConvBertForMaskedLM"}[name])
        model = model.from_pretrained(made[name])
        model.convbert.load_state_dict(encoder)
        model.save_pretrained(made[name])
    return made


@pytest.fixture(scope="module")
def online(checkpoints: dict[str, Path]) -> OnlinePredictor:
    return OnlinePredictor(
        plan_service({name: str(url) for name, url in checkpoints.items()}, {}), max_batch_tokens=100
    )


def texts_of(n: int, *, seed: int = 0) -> list[str]:
    """Texts of mixed lengths, some of them twice."""
    rng = random.Random(seed)
    texts = [" ".join(rng.choices(WORDS, k=rng.choice([0, 1, 2, 3, 5, 8, 13, 40, 150]))) for _ in range(n)]
    return [rng.choice(texts) if rng.random() < 0.1 else text for text in texts]


def ask(records: Sequence[dict[str, Any]], **heads: dict[str, Any]) -> Request:
    return Request(tuple(records), tuple((name, settings_of(settings)) for name, settings in heads.items()))


def rows_of(table: pa.Table, *names: str) -> list[dict[str, Any]]:
    """The offline door's rows in the form of the online one's."""
    found = table.select(["error", *names]).to_pylist()
    return [{"error": row["error"]} if row["error"] else row for row in found]


def assert_close(found: Any, expected: Any) -> None:
    """Equal, but for the last digits of numbers: products of other shapes add in another order."""
    if isinstance(expected, dict):
        assert list(found) == list(expected)
        found, expected = list(found.values()), list(expected.values())
    if isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_close(one, other)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-5)
    else:
        assert found == expected


def in_batches(online: OnlinePredictor, requests: list[Request], *, seed: int) -> list[Answer]:
    """Batches of random sizes."""
    rng, answers = random.Random(seed), []
    while requests:
        size = rng.randint(1, 12)
        answers += online(requests[:size])
        requests = requests[size:]
    return answers


def test_thousands_of_texts_come_out_of_both_doors_equal(online: OnlinePredictor, checkpoints: dict[str, Path]) -> None:
    texts = texts_of(2500)
    heads = {name: str(checkpoints[name]) for name in ("spam", "names")}
    expected = rows_of(label(job(head=heads, max_batch_tokens=BUDGET), text=texts), *heads)
    same = OnlinePredictor(plan_service(heads, {}), max_batch_tokens=BUDGET)
    (together,) = same([ask([{"text": text} for text in texts], spam={}, names={})])
    assert list(together.rows) == expected  # the same records with the same heads: to the last bit
    requests, rng, rest = [], random.Random(1), list(texts)
    while rest:
        size = rng.choice([1, 1, 1, 2, 5, 20])
        requests.append(ask([{"text": text} for text in rest[:size]], spam={}, names={}))
        rest = rest[size:]
    answers = in_batches(online, requests, seed=2)
    assert_close([row for answer in answers for row in answer.rows], expected)


def expected_of(checkpoints: dict[str, Path], name: str, columns: dict[str, list[Any]], **settings: Any) -> Any:
    return rows_of(label(job(head={name: str(checkpoints[name])}, **settings), **columns), name)


SETTINGS: list[tuple[str, dict[str, Any]]] = [
    ("spam", {}),
    ("spam", {"top_k": 2}),
    ("spam", {"long_text": "window", "stride": 10}),
    *(("names", {"aggregation": how}) for how in ("none", "simple", "first", "average", "max", "words", "tokens")),
    ("names", {"ignore_label": ["PER"], "long_text": "window", "stride": 7}),
    ("words", {}),
    ("words", {"top_k": 3}),
    ("vectors", {"normalize": True}),
    ("vectors", {"long_text": "error"}),
]


def test_every_setting_in_one_batch_gives_what_a_job_of_its_own_gives(
    online: OnlinePredictor, checkpoints: dict[str, Path]
) -> None:
    """Heads and settings mixed in each batch: nobody's settings reach another's answer."""
    texts = texts_of(12, seed=5)
    requests = [(place, text) for text in texts for place in range(len(SETTINGS))]
    random.Random(6).shuffle(requests)
    answers = in_batches(
        online, [ask([{"text": text}], **{SETTINGS[p][0]: SETTINGS[p][1]}) for p, text in requests], seed=7
    )
    expected = [expected_of(checkpoints, name, {"text": texts}, **settings) for name, settings in SETTINGS]
    assert [answer.refusal for answer in answers] == [None] * len(answers)
    for (place, text), answer in zip(requests, answers, strict=True):
        assert_close(answer.rows[0], expected[place][texts.index(text)])


def test_questions_choices_and_pairs(online: OnlinePredictor, checkpoints: dict[str, Path]) -> None:
    contexts, questions = texts_of(20, seed=8), ["the mail", "", "x", "free offer now"] * 5
    for settings in ({}, {"top_k": 3, "stride": 20, "max_answer_tokens": 4}, {"allow_no_answer": True}):
        expected = expected_of(checkpoints, "answers", {"question": questions, "context": contexts}, **settings)
        records = [{"question": q, "context": c} for q, c in zip(questions, contexts, strict=True)]
        assert_close(list(online([ask(records, answers=settings)])[0].rows), expected)
    options = [["mail", text] for text in contexts]
    expected = expected_of(checkpoints, "choices", {"text": contexts, "choices": options})
    records = [{"text": text, "choices": its} for text, its in zip(contexts, options, strict=True)]
    assert_close(list(online([ask(records, choices={})])[0].rows), expected)
    expected = expected_of(
        checkpoints, "spam", {"text": contexts, "text_pair": questions}, text_pair_column="text_pair"
    )
    records = [{"text": text, "text_pair": pair} for text, pair in zip(contexts, questions, strict=True)]
    assert_close(list(online([ask(records, spam={"text_pair_column": "text_pair"})])[0].rows), expected)


@pytest.mark.parametrize(("function", "problem"), [("sigmoid", "multi_label"), ("none", "regression")])
def test_a_classifier_s_scores_by_another_function(
    online: OnlinePredictor, checkpoints: dict[str, Path], tmp_path: Path, function: str, problem: str
) -> None:
    changes = {"problem_type": "regression" if problem == "regression" else "multi_label_classification"}
    other = save_checkpoint(tmp_path / "other", **with_labels("ham", "spam", "news"), **changes)
    expected = rows_of(label(job(head={"spam": str(other)}), text=["free mail"]), "spam")
    (answer,) = online([ask([{"text": "free mail"}], spam={"function_to_apply": function})])
    scores = answer.rows[0]["spam"]["scores"]
    assert_close(scores, expected[0]["spam"]["scores"])


def test_heads_that_share_an_encoder_are_run_in_one_pass(
    online: OnlinePredictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = []

    def counting(values: list[list[Any]], encoding: Encoding) -> Encoded:
        passes.append(len(values[0]))
        return encode_records(values, encoding)

    monkeypatch.setattr("pipelines.request_records.encode_records", counting)
    record = {"text": "free [MASK] now"}
    online([ask([record], spam={}, names={"aggregation": "max"}, words={}), ask([record], spam={"top_k": 1}, words={})])
    assert passes == [2]


def test_a_model_reads_all_requests_of_a_batch_at_once_however_they_are_encoded(
    online: OnlinePredictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pass for each of a hundred window lengths took a hundred times as long as its tokens had been taken for."""
    contexts = ["mail", "the free mail", "a zebra", "now", "offer"]
    requests = [
        ask([{"question": "the", "context": context}], answers={"max_length": 40 + place, "stride": place})
        for place, context in enumerate(contexts)
    ]
    expected = [online([request])[0] for request in requests]
    sizes = break_the_encoder(monkeypatch, lambda _: None)
    for answer, alone in zip(online(requests), expected, strict=True):
        assert_close(list(answer.rows), list(alone.rows))
        assert answer.n_tokens == alone.n_tokens
    assert sizes == [len(contexts)]
    break_the_encoder(monkeypatch, zebra)
    for context, answer, alone in zip(contexts, online(requests), expected, strict=True):
        if context == "a zebra":
            assert answer.rows[0]["error"].startswith("answers: the model failed on this record")
        else:
            assert_close(list(answer.rows), list(alone.rows))


def test_a_record_that_fails_for_one_head_fails_for_all_and_for_nobody_else(online: OnlinePredictor) -> None:
    bad, good = online(
        [ask([{"text": "mail"}, {"text": "[MASK]"}], spam={}, words={}), ask([{"text": "mail"}], spam={})]
    )
    assert bad.rows[0] == {"error": "the text has no [MASK]"}
    assert bad.rows[1]["error"] is None
    assert set(bad.rows[1]) == {"error", "spam", "words"}
    assert good.rows[0]["spam"]["label"]


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        ({"nobody": {}}, "no head is called 'nobody': there are spam, names"),
        ({"spam": {"top_k": 0}}, "spam: top-k (0): Input should be greater than or equal to 1"),
        ({"answers": {"max_length": 1000}}, "answers: max-length (1000) is above the model's 128 tokens: lower it"),
        ({"answers": {"stride": 126}}, "answers: stride (126) leaves no room"),
        ({"answers": {"stride": 65}}, "answers: stride (65) is above 64, half of max_length: lower it"),
        ({"answers": {"max_length": 40, "stride": 21}}, "answers: stride (21) is above 20, half of max_length"),
        ({"names": {"long_text": "window", "stride": 65}}, "names: stride (65) is above 64, half of max_length"),
    ],
)
def test_a_request_that_cannot_be_is_refused_without_harm(
    online: OnlinePredictor, heads: dict[str, Any], message: str
) -> None:
    refused, good = online([ask([{"text": "secret"}], **heads), ask([{"text": "mail"}], spam={})])
    assert refused.refusal is not None
    assert refused.refusal.startswith(message)
    assert good.rows[0]["spam"]["label"]


def test_a_head_of_another_task_is_as_good_as_none(online: OnlinePredictor) -> None:
    """During a rollout the ingress may know a head by the name of another one here."""
    known = replace(ask([{"text": "mail"}], spam={}), tasks=(("spam", "text-classification"),))
    other = replace(known, tasks=(("spam", "token-classification"),))
    with pytest.raises(UnknownHeadError, match="spam is for text-classification here, not for token-classification"):
        online.estimated_tokens(other)
    assert online.estimated_tokens(known)
    refused, good = online([other, known])
    assert refused.refusal == "spam is for text-classification here, not for token-classification"
    assert good.rows[0]["spam"]["label"]


def test_a_service_s_own_stride_is_its_own_affair(checkpoints: dict[str, Path]) -> None:
    heads, settings = {"answers": str(checkpoints["answers"])}, {"answers": {"stride": 70}}
    service = OnlinePredictor(plan_service(heads, settings), settings=settings, max_batch_tokens=BUDGET)
    own, asked = service([ask([{"question": "the", "context": "mail"}], answers=one) for one in ({}, {"stride": 70})])
    assert own.rows[0]["answers"]["answer"]
    assert asked.refusal == "answers: stride (70) is above 64, half of max_length: lower it"


@pytest.mark.parametrize(
    ("task", "parameters", "record"),
    [
        ("feature-extraction", {"truncate": True}, {"text": "mail " * 200}),
        ("question-answering", {"doc_stride": 20}, {"question": "the offer", "context": "mail now " * 200}),
    ],
)
def test_a_parameter_counts_for_more_than_the_service_s_own_way_with_long_texts(
    checkpoints: dict[str, Path], task: str, parameters: dict[str, Any], record: dict[str, str]
) -> None:
    name = {"feature-extraction": "vectors", "question-answering": "answers"}[task]
    heads, settings = {name: str(checkpoints[name])}, {name: {"long_text": "error"}}
    service = OnlinePredictor(plan_service(heads, settings), settings=settings, max_batch_tokens=BUDGET)
    own, asked = service([ask([record], **{name: one}) for one in ({}, settings_from(task, parameters, [record]))])
    assert "more than the model's 128" in own.rows[0]["error"]
    columns = {column: [text] for column, text in record.items()}
    stride = {"stride": 20} if task == "question-answering" else {}
    assert_close(list(asked.rows), expected_of(checkpoints, name, columns, **stride))


def test_a_question_that_leaves_a_long_context_no_room_is_refused(online: OnlinePredictor) -> None:
    """Or each window would add a token or two. 128 tokens less a stride of 64, an eighth and a special token: 47."""
    short, long = "mail " * 20, "mail " * 200
    for n_words, context, is_refused in ((45, long, False), (46, long, True), (46, short, False)):
        records = [{"question": "the " * n_words, "context": context}, {"question": "the", "context": short}]
        crowded, other = online([ask(records, answers={})])[0].rows
        why = f"question has {n_words + 2} tokens, above the limit of 47 beside a long context: shorten it"
        assert (crowded.get("error") == why) == is_refused
        assert other["error"] is None


def test_a_question_whose_context_fits_beside_it_is_answered_as_in_a_job(
    online: OnlinePredictor, checkpoints: dict[str, Path]
) -> None:
    """However many characters it has."""
    question, context = "the " * 50, "offering " * 20
    (row,) = online([ask([{"question": question, "context": context}], answers={})])[0].rows
    assert len(context) > 128
    assert_close([row], expected_of(checkpoints, "answers", {"question": [question], "context": [context]}))


def test_a_record_that_cannot_be_tokenised_is_nobody_else_s_affair(
    online: OnlinePredictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fragile(values: list[list[Any]], encoding: Encoding) -> Encoded:
        if any("zebra" in text for text in values[0]):
            raise ValueError("no such piece")
        return encode_records(values, encoding)

    monkeypatch.setattr("pipelines.request_records.encode_records", fragile)
    requests = [ask([{"text": text}], spam={}) for text in ("mail", "a zebra", "the offer")]
    first, bad, last = (answer.rows[0] for answer in online(requests))
    assert bad == {"error": "encoding failed on this record: ValueError: no such piece"}
    assert first["spam"]["label"]
    assert last["spam"]["label"]


@pytest.mark.parametrize(
    ("breaks", "error"),
    [
        (
            lambda patch: break_the_encoder(patch, zebra),
            "spam, names, words, vectors: the model failed on this record: RuntimeError: no kernel for z",
        ),
        (spoil_the_results, "{}: the model's result is no finite number: try precision fp32"),
    ],
    ids=["error", "nan"],
)
def test_a_record_on_which_the_model_fails_is_nobody_else_s_affair(
    breaks: Callable[[pytest.MonkeyPatch], object], error: str, online: OnlinePredictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = [{"text": text} for text in ("mail", "a zebra", "the offer now", "zzz", "Mail ! 12")]
    requests = [
        *(ask([record], spam={"top_k": 2}) for record in records),
        ask(records, names={}),
        ask(records, names={"aggregation": "max"}),
    ]
    expected = online(requests)
    breaks(monkeypatch)
    for request, answer, good in zip(requests, online(requests), expected, strict=True):
        for record, row, good_row in zip(request.records, answer.rows, good.rows, strict=True):
            if "z" in record["text"]:
                assert row == {"error": error.format(request.heads[0][0])}
            else:
                assert_close(row, good_row)


def test_where_the_model_fails_on_every_record_each_has_an_error(
    online: OnlinePredictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_the_encoder(monkeypatch, zebra)
    answers = online([ask([{"text": "z"}, {"text": 5}], names={}), ask([{"text": "zz"}], spam={})])
    assert [[row.keys() for row in answer.rows] for answer in answers] == [[{"error"}, {"error"}], [{"error"}]]
    assert [answer.n_tokens for answer in answers] == [0, 0]


def test_labels_are_those_that_the_service_was_planned_with(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """A replica that starts later reads the same weights, whatever has become of their config.json."""
    folder = tmp_path / "spam"
    shutil.copytree(checkpoints["spam"], folder)
    passes = plan_service({"spam": str(folder)}, {})
    before = OnlinePredictor(passes)([ask([{"text": "mail"}], spam={})])
    config = folder / "config.json"
    changed = json.loads(config.read_text().replace("ham", "eggs"))
    config.write_text(json.dumps({**changed, "problem_type": "multi_label_classification"}))
    assert OnlinePredictor(passes)([ask([{"text": "mail"}], spam={})]) == before


@pytest.mark.parametrize("head", ["spam", "words"])
@pytest.mark.parametrize("change", ["vocabulary", "length"])
def test_a_replica_that_finds_another_tokenizer_refuses_to_start(
    head: str, change: str, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    """Be it of a head whose texts another one tokenises."""
    for name in ("spam", "words"):
        shutil.copytree(checkpoints[name], tmp_path / name)
    passes = plan_service({name: str(tmp_path / name) for name in ("spam", "words")}, {})
    assert len(passes) == 1
    files = ("vocab.txt", "tokenizer.json") if change == "vocabulary" else ("tokenizer_config.json",)
    old, new = ("mail", "liam") if change == "vocabulary" else ("128", "16")
    for file in (tmp_path / head / name for name in files):
        if file.exists():
            file.write_text(file.read_text().replace(old, new))
    with pytest.raises(ModelError, match=f"{head}: the tokenizer at .* has changed since the service was planned"):
        OnlinePredictor(passes)


def test_a_health_check_runs_what_no_batch_has_shown_to_work(
    checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("spam", "words", "answers")  # the first two share a pass
    online = OnlinePredictor(plan_service({name: str(checkpoints[name]) for name in names}, {}))
    checked: list[Predictor] = []
    monkeypatch.setattr(Predictor, "check", lambda self: checked.append(self))
    first, second = online._predictors.values()
    online([ask([{"text": "mail"}], spam={})])
    online.check()
    assert checked == [second]
    checked.clear()
    online([ask([{"text": "no mask, and so no work"}], words={})])
    online.check()
    assert checked == [first, second]


def test_a_slow_moment_at_the_start_is_not_the_speed(online: OnlinePredictor, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = cycle([3.0, 1.0])
    monkeypatch.setattr(Predictor, "time_batch", lambda self: (100, next(seconds)))
    assert online.speed().tokens_per_s == 100


@pytest.mark.parametrize("top_k", [20, "20"])  # a number in quotes passes as one
def test_a_service_whose_head_fills_masks_with_many_words_gives_them(
    checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch, top_k: int | str
) -> None:
    monkeypatch.setattr("pipelines.online.MOST_WORDS", 10)
    heads, settings = {"words": str(checkpoints["words"])}, {"words": {"top_k": top_k}}
    service = OnlinePredictor(plan_service(heads, settings), settings=settings, max_batch_tokens=BUDGET)
    (many, few) = service([ask([{"text": "[MASK]"}], words=one) for one in ({}, {"top_k": 3})])
    assert len(many.rows[0]["words"]["masks"][0]) == 20
    assert many.rows[0]["words"]["masks"][0][:3] == few.rows[0]["words"]["masks"][0]


@pytest.mark.parametrize(
    ("record", "heads", "n_tokens"),
    [
        ({"text": "a" * 40}, {"spam": {}}, 2 + 10),
        ({"text": "a" * 100_000}, {"spam": {}}, 128),  # the rest is cut off
        ({"text": "a" * 100_000}, {"vectors": {"long_text": "error"}}, 128),
        ({"text": "a" * 4000}, {"names": {"long_text": "window", "stride": 64}}, 1002 * 128 // (64 - 2)),
        ({"text": "a" * 40}, {"spam": {}, "names": {}}, 12),  # one pass
        ({"text": "a" * 40}, {"spam": {}, "vectors": {"long_text": "error"}}, 2 * 12),  # two
        ({"text": "a" * 8, "text_pair": "a" * 4}, {"spam": {"text_pair_column": "text_pair"}}, 3 + 2 + 1),
        ({"text": "a" * 40, "choices": ["", "a" * 8]}, {"choices": {}}, 2 * (3 + 10 + 2)),
        ({"text": "a" * 4000, "choices": [""] * 100}, {"choices": {}}, 100 * 128),
        ({"question": "a" * 40, "context": "a" * 40}, {"answers": {}}, 3 + 40 + 10),
        ({"question": "a" * 40, "context": "a" * 4000}, {"answers": {}}, 1043 * 128 // (64 - 3 - 40)),
        ({"question": "a" * 4000, "context": "a" * 4000}, {"answers": {}}, 2003 * 128 // 16),
        ({"question": "!" * 512, "context": "a" * 40}, {"answers": {}}, (3 + 512 + 10) * 128 // 16),
        ({"question": "!" * 516, "context": "a" * 40}, {"answers": {}}, (3 + 129 + 10) * 128 // 16),  # not looked at
        ({"question": "\ud800", "context": "a" * 40}, {"answers": {}}, 3 + 1 + 10),
        ({"text": "日本" * 20}, {"spam": {}}, 2 + 50),
        ({"text": "é" * 40}, {"spam": {}}, 2 + 30),
        ({"text": "\ud800"}, {"spam": {}}, 2 + 1),
        ({"text": 5}, {"spam": {}}, 2),
    ],
)
def test_tokens_are_estimated_with_what_is_cut_off_and_what_is_read_again(
    online: OnlinePredictor, record: dict[str, Any], heads: dict[str, Any], n_tokens: int
) -> None:
    assert online.estimated_tokens(ask([record, record], **heads)) == [n_tokens, n_tokens]


@pytest.mark.parametrize("question", ["!", "!!!", "!" * 20, "the free mail", "free " * 9, "a" * 1000, "日" * 600])
@pytest.mark.parametrize("context", ["!" * 3000, "free mail now " * 250, "offering 12 Ünïcode日本 " * 150])
@pytest.mark.parametrize("settings", [{}, {"max_length": 32, "stride": 16}, {"max_length": 48, "stride": 0}], ids=str)
def test_no_question_takes_much_more_than_its_estimate(
    online: OnlinePredictor, question: str, context: str, settings: dict[str, Any]
) -> None:
    request = ask([{"question": question, "context": context}], answers=settings)
    (answer,) = online([request])
    if answer.rows[0]["error"]:
        assert "above the limit of" in answer.rows[0]["error"]
        assert answer.n_tokens == 0
    else:
        assert answer.n_tokens <= 4.2 * online.estimated_tokens(request)[0]


def test_settings_of_a_request_cost_no_look_at_the_whole_vocabulary(
    online: OnlinePredictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the event loop it took 30 ms for each that had not been seen before."""
    requests = [
        ask([{"text": "mail"}], names={"ignore_label": ["never seen"]}),
        ask([{"text": "mail", "text_pair": "now"}], spam={"top_k": 77, "text_pair_column": "text_pair"}),
        ask([{"question": "mail", "context": "now"}], answers={"max_length": 77}),
    ]
    for name in ("fingerprint", "get_vocab"):
        monkeypatch.setattr(ConvBertTokenizer, name, None)
    assert [online.estimated_tokens(request) for request in requests] == [[2 + 1], [3 + 1 + 0], [3 + 1 + 0]]


def test_a_batch_holds_no_tokenizer_that_requests_are_taken_with(
    online: OnlinePredictor, checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tokenizer has a lock: who takes requests would wait while a batch tokenises."""
    requests = [
        ask([{"question": "the mail", "context": "free mail now"}], answers={}),
        ask([{"text": "free mail", "text_pair": "now"}], spam={"text_pair_column": "text_pair", "long_text": "window"}),
        ask([{"text": "free [MASK]"}], spam={}, names={}, words={}),
        ask([{"text": "free", "choices": ["mail", "now"]}], choices={}),
    ]
    for tokenizer in online._tokenizers.values():
        monkeypatch.setattr(tokenizer, "encode_batch", None)
    assert [answer.rows[0]["error"] for answer in online(requests)] == [None] * 4


def test_records_without_text_are_rows_with_an_error(online: OnlinePredictor) -> None:
    (answer,) = online([ask([{"text": 5}, {}, {"text": "\ud800"}, {"text": "mail"}], spam={})])
    assert [row["error"] for row in answer.rows] == [
        "text is a number, not a string",
        "text is null",
        "text holds half of a surrogate pair, which is no character",
        None,
    ]
    assert answer.n_tokens == 3  # [CLS] mail [SEP]
    online.check()


def test_the_plan_s_passes_are_the_job_s(checkpoints: dict[str, Path]) -> None:
    heads = {name: str(checkpoints[name]) for name in ("spam", "names")}
    assert [one.encoding for one in plan_service(heads, {})] == [one.encoding for one in plan_passes(job(head=heads))]


@pytest.mark.parametrize(
    ("settings", "ignored"),
    [
        ({"max_answer_tokens": 5}, "max_answer_tokens"),
        ({"aggregation": "max", "stride": 8, "top_k": 2}, "stride, aggregation"),
    ],
)
def test_a_setting_that_no_head_looks_at_is_refused_as_in_a_job(
    checkpoints: dict[str, Path], settings: dict[str, Any], ignored: str
) -> None:
    heads = {name: str(checkpoints[name]) for name in ("spam", "vectors")}
    with pytest.raises(SpecError, match=f"^settings: no head of this service looks at {ignored}: leave it out$"):
        plan_service(heads, dict.fromkeys(heads, settings))
    fitting = {"top_k": 2, "normalize": True, "stride": 8, "long_text": "window"}
    assert plan_service(heads, dict.fromkeys(heads, fitting))


def test_softmax_of_one_label_is_refused(tmp_path: Path) -> None:
    one = save_checkpoint(tmp_path / "one", **with_labels("spam"))
    service = OnlinePredictor(plan_service({"spam": str(one)}, {}))
    answers = service([ask([{"text": "free"}], spam={"function_to_apply": name}) for name in ("softmax", "sigmoid")])
    assert answers[0].refusal == "spam: softmax gives its only label 1 whatever the text: use sigmoid or none"
    assert answers[1].rows[0]["spam"]["label"] == "spam"


def test_a_classifier_of_several_labels_can_score_them_as_one(tmp_path: Path) -> None:
    changes = {"problem_type": "multi_label_classification"}
    several = save_checkpoint(tmp_path / "several", **with_labels("ham", "spam", "news"), **changes)
    service = OnlinePredictor(plan_service({"spam": str(several)}, {}))
    given = settings_of({"function_to_apply": "softmax"})
    (answer,) = service([Request(({"text": "free mail"},), (("spam", given),))])
    assert sum(answer.rows[0]["spam"]["scores"]) == pytest.approx(1)


def test_the_speed_of_a_service_is_that_of_all_its_encoders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heads = {name: str(save_checkpoint(tmp_path / name, seed=seed)) for seed, name in enumerate(("a", "b"))}
    service = OnlinePredictor(plan_service(heads, {}))
    monkeypatch.setattr(Predictor, "time_batch", lambda self: (100, 1.0))
    assert (service.speed().n_tokens, service.speed().seconds) == (200, 2.0)
