"""Parameters of Hugging Face's inference form in, settings as jobs call them out."""

from __future__ import annotations

from typing import Any

import pytest

from pipelines.inference_form import EVERY_LABEL, check_direction, records_of, settings_from, shaped
from pipelines.online import RefusedError

INPUTS: dict[str, Any] = {
    "text-classification": "a",
    "token-classification": "a",
    "question-answering": {"question": "a", "context": "b"},
    "fill-mask": "a",
    "feature-extraction": "a",
    "multiple-choice": {"text": "a", "choices": ["b"]},
}


def settings(task: str, **parameters: Any) -> dict[str, Any]:
    return settings_from(task, parameters, records_of(task, INPUTS[task]))


@pytest.mark.parametrize(
    ("task", "parameters", "expected"),
    [
        ("text-classification", {"top_k": 1}, {"top_k": EVERY_LABEL}),  # the answer is cut, not the head
        (
            "text-classification",
            {"function_to_apply": "none"},
            {"top_k": EVERY_LABEL, "function_to_apply": "none"},
        ),
        ("token-classification", {}, {}),
        ("token-classification", {"aggregation_strategy": "max"}, {"aggregation": "max"}),
        ("token-classification", {"ignore_labels": ["O", "PER"]}, {"ignore_label": ["O", "PER"]}),
        ("token-classification", {"ignore_labels": []}, {"ignore_label": []}),
        ("token-classification", {"stride": 0}, {"stride": 0, "long_text": "window"}),
        ("token-classification", {"stride": None}, {}),
        ("question-answering", {"top_k": 3, "align_to_words": True}, {"top_k": 3}),
        ("question-answering", {"max_answer_len": 7}, {"max_answer_tokens": 7}),
        ("question-answering", {"max_seq_len": 64}, {"max_length": 64}),
        ("question-answering", {"doc_stride": 0}, {"stride": 0, "long_text": "window"}),
        ("question-answering", {"doc_stride": None}, {}),
        ("question-answering", {"handle_impossible_answer": False}, {"allow_no_answer": False}),
        ("fill-mask", {"top_k": 100}, {"top_k": 100}),
        ("feature-extraction", {"normalize": True}, {"normalize": True}),
        ("feature-extraction", {"truncate": False}, {"long_text": "error"}),
        ("feature-extraction", {"truncate": True, "truncation_direction": "right"}, {"long_text": "truncate"}),
        ("feature-extraction", {"normalize": True, "encoding_format": "float"}, {"normalize": True}),
        ("multiple-choice", {}, {}),
    ],
)
def test_parameters_become_settings(task: str, parameters: dict[str, Any], expected: dict[str, Any]) -> None:
    assert settings(task, **parameters) == expected


@pytest.mark.parametrize("side", ["left", "right"])
def test_texts_are_cut_where_the_tokenizer_cuts_them_or_the_request_is_refused(side: str) -> None:
    head = {"name": "vectors", "truncation_side": side}
    other = {"left": "right", "right": "left"}[side]
    for parameters in ({}, {"truncation_direction": None}, {"truncation_direction": side}):
        check_direction(parameters, head=head)
    with pytest.raises(RefusedError, match=f"the tokenizer of vectors cuts texts on the {side}: leave it out, or"):
        check_direction({"truncation_direction": other}, head=head)


def test_pairs_are_read_from_their_own_field() -> None:
    records = records_of("text-classification", {"text": "a", "text_pair": "b"})
    assert settings_from("text-classification", {}, records)["text_pair_column"] == "text_pair"


@pytest.mark.parametrize(
    ("task", "parameters", "message"),
    [
        ("token-classification", {"stride": -1}, "stride: Input should be greater than or equal to 0"),
        ("token-classification", {"ignore_labels": ["O"] * 1001}, "ignore_labels: List should have at most 1000"),
        ("token-classification", {"ignore_labels": ["O" * 201]}, "ignore_labels: String should have at most 200"),
        ("question-answering", {"align_to_words": False}, "align_to_words: Input should be True"),
        ("question-answering", {"max_answer_len": "7"}, "max_answer_len: Input should be a valid integer"),
        (
            "feature-extraction",
            {"truncation_direction": "up"},
            "truncation_direction: Input should be 'left' or 'right'",
        ),
        ("fill-mask", {"top_k": 101}, "top_k: Input should be less than or equal to 100"),
        ("multiple-choice", {"top_k": 1}, "'top_k' is not one for multiple-choice: there are none"),
    ],
)
def test_others_are_refused(task: str, parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(RefusedError, match=f"parameters: {message}"):
        settings(task, **parameters)


@pytest.mark.parametrize(
    ("task", "inputs"),
    [
        ("text-classification", {"text_pair": "a"}),
        ("text-classification", {"text": "a", "pair": "b"}),
        ("question-answering", "a"),
        ("question-answering", {"question": "a", "context": "b", "id": 1}),
        ("multiple-choice", "a"),
    ],
)
def test_inputs_that_are_not_the_tasks_are_refused(task: str, inputs: Any) -> None:
    with pytest.raises(RefusedError, match="inputs: give "):
        records_of(task, inputs)


def nested(depth: int) -> Any:
    return [nested(depth - 1)] if depth else "xyzzy"


@pytest.mark.parametrize(
    ("task", "inputs", "message"),
    [
        ("text-classification", {"text": nested(600)}, "text holds .*: give a string or {text, text_pair}, or"),
        ("text-classification", [{"text": "a"}, {"text": {"xyzzy": 1}}], "text holds .*: give a string or"),
        ("text-classification", {"text": "a", "text_pair": {}}, "text_pair holds .*: give a string or"),
        ("question-answering", {"question": "a", "context": ["a", []]}, "context holds .*: give {question, context}"),
        ("multiple-choice", {"text": "a", "choices": [["xyzzy"]]}, "choices holds .*: give {text, choices}"),
    ],
)
def test_values_that_hold_lists_or_objects_are_refused(task: str, inputs: Any, message: str) -> None:
    """Lists 500 deep cannot be pickled for a replica: such a request got a 500."""
    with pytest.raises(RefusedError, match=f"inputs: {message}") as error:
        records_of(task, inputs)
    assert "xyzzy" not in str(error.value)


def test_a_list_of_strings_in_place_of_a_text_is_told_by_the_head() -> None:
    """In the words of a job."""
    assert records_of("text-classification", {"text": ["a", 1, None]}) == [{"text": ["a", 1, None]}]


@pytest.mark.parametrize("aggregation", ["none", "words", "tokens"])
def test_entities_that_nothing_joins_have_that_key(aggregation: str) -> None:
    row = {"entities": [{"label": "X", "score": 1.0, "start": 0, "end": 1, "text": "a"}]}
    (found,) = shaped(
        "token-classification", [row], [{}], head={"aggregation": aggregation}, parameters={}, is_list=False
    )
    assert found["entity"] == "X"
