"""A target and seconds in, hostile files that go where no file went before, by the coverage of our own parsers.

    python -m tests.fuzz.guided --target config --seconds 60

Needs atheris (``pip install '.[soak]'``, Linux only). For the targets whose reader is Python: a library's C code shows
no coverage. A violation ends the process with its traceback, and what led to it lies beside in ``crash-…``.
"""

from __future__ import annotations

import argparse
import sys

import atheris
import hypothesis

with atheris.instrument_imports(include=["convbert", "pipelines"]):
    from tests.fuzz.targets import TARGETS, Files, outcome

GUIDED = ("config", "tokenizer_config", "special_tokens_map", "added_tokens", "index", "tf1", "jsonl")


def main() -> None:
    """Fuzz until the time is over."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--target", choices=GUIDED, required=True)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1, help="0 draws one")
    options = parser.parse_args()
    target = TARGETS[options.target]

    @hypothesis.settings(database=None, deadline=None, suppress_health_check=list(hypothesis.HealthCheck))
    @hypothesis.given(target.files)
    def attempt(files: Files) -> None:
        outcome(target, files)

    flags = [f"-max_total_time={options.seconds}", f"-seed={options.seed}", "-rss_limit_mb=4096", "-timeout=60"]
    atheris.Setup([sys.argv[0], *flags], attempt.hypothesis.fuzz_one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
