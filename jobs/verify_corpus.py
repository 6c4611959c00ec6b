"""Recount an output against its shards: whether every record is there exactly once.

python jobs/verify_corpus.py labelled/
"""

import argparse
import sys
from collections.abc import Sequence

from jobs.command_line import FAILED, OK, fail, first_line, show
from pipelines.errors import PipelineError
from pipelines.verify import verify


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what is wrong, and the counts; 0 where nothing is, and no store has left it open."""
    parser = argparse.ArgumentParser(description=first_line(__doc__))
    parser.add_argument("output", help="output folder of a job, local or any fsspec URL")
    try:
        verdict = verify(parser.parse_args(arguments).output)
    except PipelineError as error:
        return fail(error, FAILED)
    show(verdict.lines())
    return OK if verdict.is_good else FAILED


if __name__ == "__main__":
    sys.exit(main())
