"""Answer live requests with the heads that the jobs use, on a local Ray or the cluster that RAY_ADDRESS names.

python jobs/serve_online.py --head spam=examples/spam/checkpoint
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Sequence

from convbert import ConvBertError
from jobs.command_line import (
    FAILED,
    INTERRUPTED,
    MISUSED,
    OK,
    fail,
    first_line,
    given_values,
    import_at_once,
    on_signal,
    prepare_environment,
    show,
)
from pipelines.errors import PipelineError, SpecError
from pipelines.serve_spec import ServeSpec


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until a signal comes or Ray dies; errors are one line on standard error."""
    try:
        spec = parse(arguments)
        prepare_environment()
        import_at_once("torch", "ray.serve")  # Ray reads its environment then and never again
        from pipelines import serving

        tokens = os.environ.pop(serving.TOKENS, None)  # else every process of Ray would have them in its own
        with on_signal(signal.SIGTERM, signal.default_int_handler):
            serving.connect()
            url = serving.start(spec, tokens)
    except SpecError as error:
        return fail(error, MISUSED)
    except (PipelineError, ConvBertError) as error:
        return fail(error, FAILED)
    except KeyboardInterrupt:
        return fail("interrupted before the service was ready", INTERRUPTED)
    show([f"serving {', '.join(spec.urls)} at {url} (routes: {url}/docs); Ctrl-C stops"])
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    try:
        serving.watch(stopped)
        serving.stop()
    except PipelineError as error:
        return fail(error, FAILED)
    return OK


def parse(arguments: Sequence[str] | None = None) -> ServeSpec:
    """The service that flags describe, over what ``--config`` sets.

    Raises:
        SpecError: a flag or combination that no service can have.
    """
    fields, description = ServeSpec.model_fields, first_line(__doc__)
    return ServeSpec.of(given_values(description, fields, but="settings", heads=["head", "embed"], arguments=arguments))


if __name__ == "__main__":
    sys.exit(main())
