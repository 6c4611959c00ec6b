"""A stage in, the same stage out, which marks records that kill its process as failed and goes on without them.

The ledger (pipelines.ledger) counts the deaths; this is what each process does for it.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial, wraps
from typing import Any, cast

import pyarrow as pa
import ray
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipelines.culprits import good_rows, with_errors, without_culprits
from pipelines.envelope import Envelope
from pipelines.errors import DeviceError, RunError
from pipelines.ledger import Ledger, Order

Stage = Callable[..., pa.Table]

logger = logging.getLogger(__name__)


def open_ledger() -> ActorHandle[Ledger]:
    """A ledger on this node, which lives as long as somebody here holds it."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, "scheduling_strategy": here}
    return cast("ActorHandle[Ledger]", ray.remote(Ledger).options(**options).remote())


@contextmanager
def counted(ledger: ActorHandle[Ledger], *, doing: str, part: str) -> Iterator[None]:
    """Work on a unit as a whole.

    Raises:
        RunError: it has killed too many processes.
    """
    unit = f"{doing} {part}"
    _checked(ray.get(ledger.begin.remote(unit, 0)))
    yield
    ledger.finish.remote(unit)


def surviving(stage: Stage, ledger: ActorHandle[Ledger], *, doing: str, timed_as: str) -> Stage:
    """The stage, under its own name, for blocks in their envelopes.

    Records on which it raises are found too (pipelines.culprits).

    Args:
        stage: takes a block, passes rows with an error on as they are, and has no effect but its result.
        ledger: counts the processes that die of it.
        doing: what it does, for people.
        timed_as: field of the envelope that takes how long it did.
    """

    @wraps(stage)
    def survivor(row: pa.Table, *arguments: Any, **options: Any) -> pa.Table:
        work = partial(without_culprits, work=lambda block: stage(block, *arguments, **options), what=doing)
        started = time.perf_counter()
        envelope = _survive(row, work, ledger, doing=doing)
        taken: dict[str, Any] = {timed_as: time.perf_counter() - started}
        return envelope._replace(**taken).seal()

    return survivor


def surviving_actor(stage: Callable[..., Stage], ledger: ActorHandle[Ledger], *, doing: str) -> type:
    """The class, whose instances are such stages and note how long they work and wait, under its own name."""

    class Survivor:
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self._stage = stage(*args, **kwargs)
            self._free_since = time.perf_counter()

        def __call__(self, row: pa.Table) -> pa.Table:
            started, waited_s = time.perf_counter(), time.perf_counter() - self._free_since
            envelope = _survive(row, self._stage, ledger, doing=doing)
            sealed = envelope._replace(busy_s=time.perf_counter() - started, waited_s=waited_s).seal()
            self._free_since = time.perf_counter()
            return sealed

    Survivor.__name__ = stage.__name__
    return Survivor


def _survive(row: pa.Table, stage: Stage, ledger: ActorHandle[Ledger], *, doing: str) -> Envelope:
    """What the stage makes of a block; records that kill its process are left out, with an error.

    Raises:
        RunError: the unit kills processes, and no record is to blame.
    """
    envelope = Envelope.open(row)
    block, unit = envelope.block, f"{doing} {envelope.part}"
    rows = good_rows(block)
    order = _checked(ray.get(ledger.begin.remote(unit, len(rows))))
    while order.stretch is not None:
        _or_die(stage, _without(order.killers, block, doing).take(pa.array(rows[order.stretch])))
        order = _checked(ray.get(ledger.worked.remote(unit, len(rows))))
    result = _or_die(stage, _without(order.killers, block, doing))
    ledger.finish.remote(unit)
    return envelope._replace(block=result)


def _checked(order: Order) -> Order:
    if order.give_up:
        raise RunError(order.give_up)
    return order


def _without(killers: Mapping[int, int], block: pa.Table, doing: str) -> pa.Table:
    reason = f"the process died {{}} times while {doing} this record alone"
    rows = good_rows(block)
    return with_errors(block, {int(rows[record]): reason.format(deaths) for record, deaths in killers.items()})


def _or_die(stage: Stage, block: pa.Table) -> pa.Table:
    """What the stage makes of a block; where only a new process can go on, make room for it."""
    try:
        return stage(block)
    except DeviceError as error:
        logger.error("%s", error)
        os._exit(1)  # Ray then starts a new process; an exception would end the job
