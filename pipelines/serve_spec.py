"""Flags, YAML or ``serve run`` arguments in, one validated ServeSpec out: heads, limits, replicas."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from pipelines.errors import PipelineError, SpecError
from pipelines.online import head_spec
from pipelines.spec import JobSpec, Spec, first_fault

RESERVED = ("label", "health", "ready", "info", "docs", "openapi")  # paths of the service's own
SETTINGS = (
    *("long_text", "max_length", "stride", "window_pooling", "top_k", "threshold", "aggregation", "ignore_label"),
    *("max_answer_tokens", "allow_no_answer", "pooling", "normalize", "embedding_type"),
)
"""JobSpec fields that ``settings`` may hold: what heads do, not what a job reads or writes."""


class ServeSpec(Spec):
    """One service. Field names are the keys of YAML files and of ``serve run``, and with dashes the flags.

    Raises:
        SpecError: through ``ServeSpec.of``, a value or combination that no service can have.
    """

    head: dict[str, str] = Field({}, description="NAME=URL: a checkpoint and the path it answers at; may be repeated")
    embed: dict[str, str] = Field({}, description="NAME=URL: the same, for vectors of any checkpoint's encoder")
    settings: dict[str, Any] = Field({}, description="what heads do unless a request asks otherwise, as jobs call it")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto takes GPUs where the cluster has them")
    precision: Literal["auto", "fp32", "bf16", "fp16", "int8"] = Field(
        "auto", description="auto: fp32 on a CPU, bf16 on a GPU (fp16 on one without bf16); int8 is for CPUs"
    )
    threads: int | None = Field(None, ge=1, description="CPU threads of a replica (default: at most 8)")
    host: str = Field("127.0.0.1", description="address to listen at; 0.0.0.0 for every network")
    port: int = Field(8000, ge=1, le=65535, description="port to listen at")
    max_body_bytes: int = Field(2_000_000, ge=1, description="largest request")
    max_texts: int = Field(256, ge=1, description="most texts of a request")
    max_characters: int = Field(100_000, ge=1, description="longest text")
    timeout_s: float = Field(30, gt=0, description="seconds after which a request is given up")
    max_batch_tokens: int | None = Field(None, ge=1, description="token budget of a batch (default: the device's)")
    max_wait_ms: float = Field(2, ge=0, description="milliseconds that a request waits for others")
    max_queued_tokens: int = Field(200_000, ge=1, description="tokens that may wait at a replica")
    max_ongoing_requests: int = Field(1000, ge=1, description="most requests at a replica at a time")
    max_queued_requests: int = Field(300, ge=-1, description="most requests that wait for a replica; -1: any number")
    min_replicas: int = Field(1, ge=0, description="fewest replicas; 0 lets an idle service take nothing")
    max_replicas: int = Field(1, ge=1, description="most replicas")
    target_ongoing_requests: float = Field(32, gt=0, description="requests at a replica that call for another one")
    upscale_delay_s: float = Field(5, ge=0, description="seconds of load before a replica is added")
    downscale_delay_s: float = Field(300, ge=0, description="seconds without load before a replica goes")
    max_surge_percent: int = Field(
        0, ge=0, le=100, description="replicas beyond their number, for which there must be room, during a rollout"
    )
    ingress_replicas: int | None = Field(
        None,
        ge=1,
        description="processes that take requests (default: 4 with GPUs, else 2 where there may be several replicas)",
    )
    replica_cpus: float | None = Field(
        None, ge=0, description="CPUs that Ray reserves for a replica (default: its threads, or 1; none beside a GPU)"
    )

    @model_validator(mode="before")
    @classmethod
    def _dots_are_mappings(cls, values: Any) -> Any:
        """``head.spam=URL``, as ``serve run`` takes it."""
        if not isinstance(values, Mapping):
            return values
        nested: dict[str, Any] = {}
        for key, value in values.items():
            field, dot, name = str(key).partition(".")
            given = {name: value} if dot else value
            if field in nested:
                if not isinstance(nested[field], Mapping) or not isinstance(given, Mapping):
                    raise ValueError(f"{field} is given as a whole and by its parts: give {field}.NAME=… alone")
                given = {**nested[field], **given}
            nested[field] = given
        return nested

    @model_validator(mode="after")
    def _fits_together(self) -> ServeSpec:
        if not self.urls:
            raise ValueError("no model: give head, embed or both, as NAME=URL")
        both = sorted(set(self.head) & set(self.embed))
        if both:
            raise ValueError(f"two heads would be called {both[0]!r}")
        for name in self.urls:
            if name in RESERVED:
                raise ValueError(f"a head cannot be called {name!r}: the service has a path of that name")
        if self.settings.get("pseudo_log_likelihood"):
            raise ValueError("likelihoods of texts are for jobs: the service fills masks")
        for name in self.settings:
            if name not in SETTINGS:
                raise ValueError(f"settings: {name!r} is not one of a head's: there are {', '.join(SETTINGS)}")
        try:
            JobSpec.of({"input": ["-"], "output": "-", "head": self.urls})
            for name, url in self.urls.items():
                head_spec(url, self.settings_of_heads[name])
        except PipelineError as error:
            raise ValueError(str(error)) from error
        if self.max_queued_requests == 0:
            raise ValueError("max_queued_requests (0) would refuse all: give -1 for any number, or 1 at least")
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas ({self.min_replicas}) is above max_replicas ({self.max_replicas})")
        return self

    @property
    def urls(self) -> dict[str, str]:
        """Checkpoint by head."""
        return {**self.head, **self.embed}

    @property
    def settings_of_heads(self) -> dict[str, dict[str, Any]]:
        """JobSpec fields by head."""
        vectors = {"task": "feature-extraction"}
        return {name: {**self.settings, **(vectors if name in self.embed else {})} for name in self.urls}

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> ServeSpec:
        """Validate values by field name.

        Raises:
            SpecError: naming the field, its value and the remedy.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise SpecError(first_fault(error, cls.model_fields)) from error
