from __future__ import annotations

from typing import Any

import pytest

from pipelines.errors import SpecError
from pipelines.serve_spec import SETTINGS, ServeSpec
from pipelines.spec import JobSpec


@pytest.mark.parametrize("values", [{"head": "x", "head.spam": "y"}, {"head.spam": "y", "head": "x"}], ids=str)
def test_a_head_without_a_name_beside_one_with_a_name_is_refused(values: dict[str, str]) -> None:
    with pytest.raises(SpecError, match="head is given as a whole and by its parts"):
        ServeSpec.of(values)


def test_endless_times_are_refused() -> None:
    with pytest.raises(SpecError, match=r"max_texts \(True\): a number is wanted"):
        ServeSpec.of({"head": {"a": "b"}, "max_texts": True})
    with pytest.raises(SpecError, match="timeout_s .*finite number"):
        ServeSpec.of({"head": {"a": "b"}, "timeout_s": float("inf")})


def test_dots_name_the_heads_as_serve_run_takes_them() -> None:
    spec = ServeSpec.of({"head.spam": "a", "head.topic": "b", "embed": {"vectors": "a"}, "port": "9000"})
    assert spec.urls == {"spam": "a", "topic": "b", "vectors": "a"}
    assert spec.port == 9000
    assert spec.settings_of_heads["vectors"] == {"task": "feature-extraction"}


def test_settings_are_fields_of_jobs() -> None:
    assert set(SETTINGS) <= set(JobSpec.model_fields)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "no model: give head, embed or both, as NAME=URL"),
        ({"head": {"info": "a"}}, "a head cannot be called 'info': the service has a path of that name"),
        ({"head": {"a-b": "a"}}, "--head a-b=…: a name is letters, digits and underscores"),
        ({"head": {"a": "x"}, "embed": {"a": "x"}}, "two heads would be called 'a'"),
        ({"head": {"a": "x"}, "settings": {"top_k": 0}}, r"--top-k \(0\): Input should be greater"),
        ({"head": {"a": "x"}, "settings": {"pseudo_log_likelihood": True}}, "likelihoods of texts are for jobs"),
        (
            {"head": {"a": "x"}, "settings": {"text_column": "body"}},
            "settings: 'text_column' is not one of a head's: there",
        ),
        ({"head": {"a": "x"}, "settings": {"model": "y"}}, "settings: 'model' is not one of a head's"),
        ({"head": {"a": "x"}, "port": 0}, r"port \(0\): Input should be greater than or equal to 1"),
        ({"head": {"a": "x"}, "min_replicas": 3}, r"min_replicas \(3\) is above max_replicas \(1\)"),
        ({"head": {"a": "x"}, "max_queued_requests": 0}, r"max_queued_requests \(0\) would refuse all: give -1"),
        ({"head": {"a": "x"}, "prot": 1}, "unknown setting 'prot': the settings are head, embed"),
        ({"head": {"a": "x"}, "port": 70000}, r"port \(70000\): Input should be less than or equal to 65535"),
    ],
)
def test_what_no_service_can_have_is_one_line(values: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        ServeSpec.of(values)


@pytest.mark.parametrize(
    ("field", "least", "below"),
    [
        ("threads", 1, 0),
        ("max_body_bytes", 1, 0),
        ("max_texts", 1, 0),
        ("max_characters", 1, 0),
        ("timeout_s", 0.01, 0),
        ("max_batch_tokens", 1, 0),
        ("max_wait_ms", 0, -1),
        ("max_queued_tokens", 1, 0),
        ("max_ongoing_requests", 1, 0),
        ("max_queued_requests", -1, -2),
        ("min_replicas", 0, -1),
        ("max_replicas", 1, 0),
        ("target_ongoing_requests", 0.5, 0),
        ("upscale_delay_s", 0, -1),
        ("downscale_delay_s", 0, -1),
        ("max_surge_percent", 0, -1),
        ("ingress_replicas", 1, 0),
        ("replica_cpus", 0, -1),
    ],
)
def test_the_least_of_each_number(field: str, least: float, below: float) -> None:
    assert getattr(ServeSpec.of({"head": {"a": "b"}, field: least}), field) == least
    with pytest.raises(SpecError, match=rf"^{field} \({below}\): Input should be greater than"):
        ServeSpec.of({"head": {"a": "b"}, field: below})


def test_only_embeddings_are_made_of_any_encoder() -> None:
    spec = ServeSpec.of({"head": {"spam": "a"}, "embed": {"vectors": "a"}, "settings": {"top_k": 3}})
    assert spec.settings_of_heads == {"spam": {"top_k": 3}, "vectors": {"top_k": 3, "task": "feature-extraction"}}
