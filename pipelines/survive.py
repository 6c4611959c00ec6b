"""A stage that dies of a record in, one that marks the record and goes on out: what a ledger needs of each process."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial, wraps
from typing import Any, cast

import pyarrow as pa
import ray
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipelines.culprits import good_rows, with_errors, without_culprits
from pipelines.errors import DeviceError, RunError
from pipelines.ledger import Ledger, Order
from pipelines.read import WAYBILL

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


def surviving(stage: Stage, ledger: ActorHandle[Ledger], *, doing: str, by_row: bool = True) -> Stage:
    """The stage, which takes a block, under its own name.

    Args:
        stage: passes rows with an error on as they are.
        ledger: counts the processes that die of it.
        doing: what it does, for people.
        by_row: its rows can be tried apart, and it has no effect but its result. Those on which it raises are
            then found too (pipelines.culprits).
    """

    @wraps(stage)
    def survivor(block: pa.Table, **kwargs: Any) -> pa.Table:
        work = partial(stage, **kwargs)
        if by_row:
            work = partial(_without_culprits, work=work, doing=doing)
        return _survive(block, work, ledger, doing=doing, by_row=by_row)

    return survivor


def surviving_actor(stage: Callable[..., Stage], ledger: ActorHandle[Ledger], *, doing: str) -> type:
    """The class, whose instances are such stages, under its own name."""

    class Survivor:
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self._stage = stage(*args, **kwargs)

        def __call__(self, block: pa.Table) -> pa.Table:
            return _survive(block, self._stage, ledger, doing=doing)

    Survivor.__name__ = stage.__name__
    return Survivor


def _without_culprits(block: pa.Table, work: Stage, doing: str) -> pa.Table:
    nothing_to_do = with_errors(block, dict.fromkeys(range(len(block)), ""))
    return without_culprits(block, work, control=partial(work, nothing_to_do), what=doing)


def _survive(
    block: pa.Table, stage: Stage, ledger: ActorHandle[Ledger], *, doing: str, by_row: bool = True
) -> pa.Table:
    """What the stage makes of a block; records that kill its process are left out, with an error.

    Raises:
        RunError: the unit kills processes, and no record is to blame.
    """
    unit, rows = f"{doing} {_part_of(block)}", good_rows(block)
    n_records = len(rows) if by_row else 0
    order = _checked(ray.get(ledger.begin.remote(unit, n_records)))
    while order.stretch is not None:
        _or_die(stage, _without(order.killers, block, doing).take(pa.array(rows[order.stretch])))
        order = _checked(ray.get(ledger.worked.remote(unit, n_records)))
    result = _or_die(stage, _without(order.killers, block, doing))
    ledger.finish.remote(unit)
    return result


def _part_of(block: pa.Table) -> str:
    """The name of the part that a block becomes."""
    name: str = json.loads(block[WAYBILL][0].as_py())["part"]
    return name


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
