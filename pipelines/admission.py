"""Jobs that each take a cluster's CPUs for their own in, one after the other out.

The actors of two such jobs would reserve every CPU, and each job wait for ever for the other's tasks to have one.
"""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from types import TracebackType
from typing import Any

import ray
from ray.exceptions import RayError

from pipelines.resources import Hardware, free_and_present

logger = logging.getLogger(__name__)
NAME = NAMESPACE = "convbert_admission"
LOOK_S = 2.0
LOOKS_A_LINE = 30


class Turn:
    """Whoever could make the actor of this name is about to begin; with its job Ray ends it, however that ends."""


class Admission:
    """A job's permission to begin, held until its own actors are up and show in what is free."""

    def __init__(self) -> None:
        self._turn: Any = None

    def __enter__(self) -> Admission:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def has_waited(self, hardware: Hardware) -> bool:
        """Wait until there is room; False where there is some at once, and for a job that has its own share."""
        if not hardware.takes_all_cpus:
            return False
        n_looks = 0
        while why := self._lacks(hardware):
            if n_looks % LOOKS_A_LINE == 0:
                logger.warning("waiting: %s (--actor-cpus and --max-actors give a job a share of its own)", why)
            n_looks += 1
            time.sleep(LOOK_S)
        return n_looks > 0

    def _lacks(self, hardware: Hardware) -> str | None:
        """Why the job cannot begin; None where it can."""
        if self._turn is None:
            try:
                self._turn = ray.remote(Turn).options(name=NAME, namespace=NAMESPACE, num_cpus=0).remote()
            except ValueError:  # which is how Ray says that there is one
                return "another job is about to take the cluster's CPUs"
        free, present = free_and_present("CPU")
        if free > hardware.first_cpus - 1e-3:  # Ray counts in ten thousandths
            return None
        return f"of the cluster's {present:g} CPUs {free:g} are free, and this job begins with {hardware.first_cpus:g}"

    def release(self) -> None:
        """Let the next one look."""
        if self._turn is not None:
            with suppress(RayError):  # the cluster may be gone
                ray.kill(self._turn)
            self._turn = None
