"""A job's command line in, its exit status out: flags and YAML → JobSpec → run."""

from __future__ import annotations

import argparse
import gc
import io
import logging
import os
import secrets
import signal
import sys
import threading
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal, NoReturn, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from convbert import ConvBertError
from convbert.errors import printable
from pipelines.errors import PipelineError, SpecError
from pipelines.outcome import Outcome, Status, utc_now, write_outcome
from pipelines.spec import JobSpec, flag, read_config
from pipelines.storage import redacted
from pipelines.summary import Summary

OK, FAILED, MISUSED, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143


def main(doc: str | None, *, task: str, arguments: Sequence[str] | None = None) -> int:
    """Run one job from its command line; errors are one line on standard error.

    How it ended stands in ``_result.json`` in the output folder too, unless the command line itself was wrong or asked
    for a dry run.

    Args:
        doc: what the job does, in its first line; None where Python leaves docstrings out.
        task: what at least one of its heads must be for.
        arguments: the command line; None takes the process's own.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(_OneLine("%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.getLogger("azure").setLevel(logging.WARNING)  # it logs every request with its headers
    try:
        spec = parse(first_line(doc), task=task, arguments=arguments)
        prepare_environment()
    except SpecError as error:
        return fail(error, MISUSED)
    begun = Outcome.begun(utc_now())
    end = End("failed", FAILED)
    with on_signal(signal.SIGTERM, signal.SIG_IGN):  # while the result is written
        try:
            with on_signal(signal.SIGTERM, _terminate):
                end = _attempt(spec, begun)
        except BaseException as error:  # a fault of ours: the trace follows
            end = End("failed", FAILED, f"{type(error).__name__}: {error}", type(error).__name__)
            raise
        finally:
            with on_signal(signal.SIGINT, signal.SIG_IGN):
                if not spec.dry_run:
                    write_outcome(spec.output, begun.ended(utc_now(), **vars(end)))
    return fail(end.error, end.exit_code) if end.error else end.exit_code


class _OneLine(logging.Formatter):
    """A line a message, whatever file names it holds, without secrets."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802, the name that logging calls
        return printable(redacted(super().formatMessage(record)))


@dataclass(frozen=True)
class End:
    """How a run ended, in the terms of ``pipelines.outcome.Outcome.ended``."""

    status: Status
    exit_code: int
    error: str | None = None
    error_type: str | None = None
    summary: Summary | None = None


def _attempt(spec: JobSpec, begun: Outcome) -> End:
    """Say that the job runs, run it and print its summary."""
    try:
        if not spec.dry_run:
            write_outcome(spec.output, begun)
        import_at_once("torch", "ray.data")  # Ray reads its environment then and never again
        from pipelines.run import run

        summary = run(spec)
    except (PipelineError, ConvBertError) as error:
        return End("failed", MISUSED if isinstance(error, SpecError) else FAILED, str(error), type(error).__name__)
    except KeyboardInterrupt:
        return End("interrupted", INTERRUPTED, f"interrupted; {_GO_ON}", "Interrupted")
    except SystemExit:  # what SIGTERM becomes
        return End("interrupted", TERMINATED, f"terminated; {_GO_ON}", "Terminated")
    show(summary.lines())
    if summary.has_failed_too_often and not spec.dry_run:
        message = f"{summary.too_many_failed}: look at the column 'error', mend the input or raise the limit"
        return End("failed", FAILED, message, "TooManyFailed", summary)
    return End("succeeded", OK, summary=summary)


_GO_ON = "finished parts stay: start the same command again to go on"


def _terminate(number: int, frame: types.FrameType | None) -> NoReturn:
    """End the run as Ctrl-C does, with its result written: schedulers stop jobs that way."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # Ray and `timeout` both send it: one ends the run
    sys.exit(TERMINATED)


@contextmanager
def on_signal(number: signal.Signals, action: Callable[..., object] | signal.Handlers) -> Iterator[None]:
    """Let a signal do this meanwhile; beside the main thread nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(number, action)
    try:
        yield
    finally:
        signal.signal(number, before)


def parse(description: str, *, task: str, arguments: Sequence[str] | None = None) -> JobSpec:
    """The job that flags describe, over what ``--config`` sets.

    Raises:
        SpecError: a flag or combination that no job can have.
    """
    given = given_values(description, JobSpec.model_fields, but="task", heads=["head"], arguments=arguments)
    return JobSpec.of({**given, "task": task})


def given_values(
    description: str,
    fields: Mapping[str, FieldInfo],
    *,
    but: str,
    heads: Sequence[str],
    arguments: Sequence[str] | None,
) -> dict[str, Any]:
    """What flags give, over what ``--config`` sets.

    Args:
        description: first words of ``--help``.
        fields: those that have flags, apart from ``but``.
        heads: fields whose flags are NAME=URL.
        arguments: the command line; None takes the process's own.

    Raises:
        SpecError: a config or a head that cannot be read.
    """
    parser = _Parser(description=description, allow_abbrev=False)
    parser.add_argument("--config", metavar="YAML", help="file with the same settings; flags override it")
    for name, field in fields.items():
        if name != but:
            parser.add_argument(flag(name), **argument(field))
    given = {name: value for name, value in vars(parser.parse_args(arguments)).items() if value is not None}
    config = given.pop("config", None)
    for name in heads:
        if name in given:
            given[name] = urls_by_name(given[name], flag(name))
    settings = read_config(config) if config else {}
    if {"model", "head"} & given.keys():  # two ways to say the same
        settings = {name: value for name, value in settings.items() if name not in ("model", "head")}
    return {**settings, **given}


class _Parser(argparse.ArgumentParser):
    """Shows no secret of an address that it does not understand."""

    def error(self, message: str) -> NoReturn:
        super().error(printable(redacted(message)))


def prepare_environment() -> None:
    """Settings that Ray and tokenizers read from the environment, where the user has set none.

    A cluster that the job starts for itself gets a token of its own: no other user of the machine can
    reach it, and Ray leaves none in the home folder.

    Raises:
        SpecError: Python leaves docstrings out, without which Ray Data cannot be imported; or the working folder has
            been removed, without which torch's libraries end the process.
    """
    if sys.flags.optimize > 1:
        raise SpecError("Ray needs docstrings: start without python -OO or PYTHONOPTIMIZE=2")
    try:
        os.getcwd()
    except FileNotFoundError as error:
        raise SpecError("the folder in which this was started has been removed: cd to one that is there") from error
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # tasks are what runs in parallel
    if not os.environ.get("RAY_ADDRESS") and "RAY_AUTH_MODE" not in os.environ:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def import_at_once(*names: str) -> None:
    """Import large libraries, for as long as the process lives, with the garbage collector off.

    It would look through their half a million objects again and again, which takes a third of the imports' time, and
    once more when the process ends.
    """
    if all(name in sys.modules for name in names):
        return
    gc.disable()
    try:
        for name in names:
            import_module(name)
    finally:
        gc.freeze()
        gc.enable()


def argument(field: FieldInfo) -> dict[str, Any]:
    """How argparse takes a field: its type, its help and its default."""
    default = field.get_default(call_default_factory=True)
    text = ", ".join(default) if isinstance(default, list) else default
    shown = "" if field.is_required() or default in (None, [], {}, False) else f" (default: {text})"
    argument: dict[str, Any] = {"help": f"{field.description}{shown}"}
    kind = _without_none(field.annotation)
    if kind is bool:
        return {**argument, "action": argparse.BooleanOptionalAction, "default": None}
    if get_origin(kind) in (list, dict):
        return {**argument, "action": "append", "metavar": "NAME=URL" if get_origin(kind) is dict else "VALUE"}
    if get_origin(kind) is Literal:
        return {**argument, "choices": get_args(kind)}
    return {**argument, "type": kind, "metavar": {int: "N", float: "X"}.get(kind, "VALUE")}


def _without_none(annotation: Any) -> Any:
    if get_origin(annotation) in (Union, types.UnionType):
        return next(kind for kind in get_args(annotation) if kind is not type(None))
    return annotation


def first_line(doc: str | None) -> str:
    """What a script does, from its docstring, which ``python -OO`` leaves out."""
    return (doc or "").partition("\n")[0]


def urls_by_name(heads: Sequence[str], option: str) -> dict[str, str]:
    """What the values of a flag, NAME=URL, say.

    Raises:
        SpecError: one without name or URL, or two of one name.
    """
    urls: dict[str, str] = {}
    for head in heads:
        name, _, url = head.partition("=")
        if not name or not url:
            raise SpecError(f"{option} {head}: give NAME=URL, such as {option} topic=checkpoints/topic")
        if name in urls:
            raise SpecError(f"{option} {name} is given twice: give each head a name of its own")
        urls[name] = url
    return urls


def show(lines: Iterable[str]) -> None:
    """Print lines as far as standard output takes them: what is done is done, even if nobody reads of it."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # it may be ASCII
    try:
        for line in lines:
            print(printable(line), flush=True)
    except OSError as error:  # a pipe whose reader has gone, a full disk
        logging.getLogger(__name__).warning("standard output cannot be written: %s", error)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python writes what is left when it ends


def fail(error: object, status: int) -> int:
    """Tell an error on standard error, without secrets; the exit status."""
    print(f"error: {redacted(str(error))}", file=sys.stderr)
    return status
