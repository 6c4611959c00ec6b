"""The ends of the pipeline as tasks of Ray: what is pending in, a row of figures for each part that is written out.

The processes that do them, and what is between them on CPUs, import no torch.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from itertools import count
from typing import Any

import pyarrow as pa
from ray.actor import ActorHandle
from ray.data import DataContext, Datasource, ReadTask
from ray.data.block import BlockMetadata

from pipelines.envelope import Envelope
from pipelines.ledger import Ledger
from pipelines.read import Columns, read
from pipelines.survive import counted
from pipelines.units import Stream, Task
from pipelines.write import write_part

MOST_READ_TASKS = 10_000  # Ray stores all of them before the first begins, some 2 ms each


class TaskSource(Datasource):
    """What is pending as a Ray datasource: a read task each, or shared ones, which yield their units one by one.

    Attributes:
        read_tasks: what each of them reads.
    """

    def __init__(self, tasks: list[Task], columns: Columns, ledger: ActorHandle[Ledger]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.read_tasks = [tasks[first::MOST_READ_TASKS] for first in range(min(len(tasks), MOST_READ_TASKS))]
        self._columns = columns
        self._ledger = ledger

    def estimate_inmemory_data_size(self) -> int | None:
        """Unknown before reading."""
        return None

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: DataContext | None = None
    ) -> list[ReadTask]:
        """All of them, whatever parallelism Ray proposes."""
        nothing_known = BlockMetadata(num_rows=None, size_bytes=None, exec_stats=None, input_files=None)
        return [
            ReadTask(partial(_read_all, its, self._columns, self._ledger), nothing_known) for its in self.read_tasks
        ]


def _read_all(tasks: list[Task], columns: Columns, ledger: ActorHandle[Ledger]) -> Iterator[pa.Table]:
    for task in tasks:
        yield from _read(task, columns, ledger)


def _read(task: Task, columns: Columns, ledger: ActorHandle[Ledger]) -> Iterator[pa.Table]:
    first = task.name(0) if isinstance(task, Stream) else task[0].name
    envelopes = read(task, columns)
    for number in count():
        started = time.perf_counter()
        with counted(ledger, doing="reading", part=f"{first} + {number}"):
            envelope = next(envelopes, None)
        if envelope is None:
            return
        yield envelope._replace(read_s=time.perf_counter() - started).seal()


def write(row: pa.Table, ledger: ActorHandle[Ledger], **options: Any) -> pa.Table:
    """A labelled unit -> its part in the store, and a row with the part's figures; the options are ``write_part``'s."""
    envelope = Envelope.open(row)
    with counted(ledger, doing="writing", part=envelope.part):
        part = write_part(envelope, **options)
    return pa.table({"part": [json.dumps(asdict(part))]})
