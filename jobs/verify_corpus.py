"""Recount an output against its shards: whether every record is there exactly once.

python jobs/verify_corpus.py labelled/
"""

import argparse
import sys

from pipelines.errors import PipelineError
from pipelines.verify import verify


def main() -> int:
    """Print what is wrong, and the counts; 0 where nothing is."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("output", help="output folder of a job, local or any fsspec URL")
    try:
        verdict = verify(parser.parse_args().output)
    except PipelineError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for line in verdict.lines():
        print(line)
    return 1 if verdict.faults else 0


if __name__ == "__main__":
    sys.exit(main())
