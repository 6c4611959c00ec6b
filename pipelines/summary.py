"""A finished run in, what people read of it out: the summary lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from pipelines.estimate import Estimate
from pipelines.manifest import total_labels, total_reasons
from pipelines.storage import redacted
from pipelines.write import Part

if TYPE_CHECKING:
    from pipelines.plan import JobPlan


def reasons_in_words(parts: Sequence[Part], n: int = 3) -> str:
    """The commonest reasons why records failed, each with how often and where it occurs first."""
    counts, examples = total_reasons(parts, n)
    such_as = {reason: f", such as {example}" for reason, example in examples.items()}
    return "; ".join(f"{reason} ({count:,}{such_as.get(reason, '')})" for reason, count in counts.items())


def is_above(fraction: float, failed: int, rows: int) -> bool:
    """Whether more failed than a fraction, which is the decimal that the user wrote and not the float beside it."""
    return failed > Fraction(str(fraction)) * rows


def is_too_damaged(fraction: float, n_cut: int) -> bool:
    """Whether compressed shards have lost records, of which nobody knows how many, in a job that does not take all."""
    return n_cut > 0 and fraction < 1


@dataclass(frozen=True)
class Summary:
    """What a run did, and what the output holds now.

    Attributes:
        output: URL of the output folder.
        rows, failed: records in the whole output, and those with an error.
        night_rows, night_failed: records that the newest night has added to it, and those with an error.
        labels: records by label, for each head.
        reasons: failed records by reason, the commonest.
        new_rows, new_tokens, seconds: what this run labelled, and its wall-clock time.
        copied_tokens: those of the new tokens that belong to duplicates.
        n_actors, busy_s: model actors that this run had, and the seconds that they computed, all together.
        max_failed_fraction: share of failed records that the job takes.
        n_cut: compressed shards of whose rest nothing can be read.
        is_done: the output was what the job would make, before it began.
        estimate: what a dry run found to do.
    """

    output: str
    rows: int
    failed: int
    night_rows: int
    night_failed: int
    labels: dict[str, dict[str, int]]
    reasons: dict[str, int]
    new_rows: int
    new_tokens: int
    copied_tokens: int
    n_actors: int
    busy_s: float
    seconds: float
    max_failed_fraction: float
    n_cut: int = 0
    is_done: bool = True
    estimate: Estimate | None = None

    @classmethod
    def of(
        cls,
        plan: JobPlan,
        *,
        parts: Sequence[Part],
        labelled: Sequence[Part],
        seconds: float,
        night: Mapping[str, Any] | None = None,
        n_actors: int = 0,
        estimate: Estimate | None = None,
    ) -> Summary:
        """The summary of a plan that gave these parts, of which this run labelled some.

        Args:
            plan: what was to be done.
            parts: all of the output.
            labelled: by this run.
            seconds: that it took.
            night: the newest that the manifest tells of, if any; where there was nothing to do, an earlier run's.
            n_actors: that it had.
            estimate: what a dry run found.
        """
        night = night or {"rows": 0, "failed": 0}
        return cls(
            output=redacted(plan.spec.output),
            rows=sum(part.rows for part in parts),
            failed=sum(part.failed for part in parts),
            night_rows=night["rows"],
            night_failed=night["failed"],
            labels=total_labels(parts),
            reasons=total_reasons(parts, 3)[0],
            new_rows=sum(part.rows for part in labelled),
            new_tokens=sum(part.tokens for part in labelled),
            copied_tokens=sum(part.copied_tokens for part in labelled),
            n_actors=n_actors,
            busy_s=sum(part.busy_s for part in labelled),
            seconds=seconds,
            max_failed_fraction=plan.spec.max_failed_fraction,
            n_cut=sum(part.n_cut for part in parts),
            is_done=plan.is_done,
            estimate=estimate,
        )

    @property
    def has_failed_too_often(self) -> bool:
        """More records failed than the job takes."""
        return self.too_many_failed is not None

    @property
    def too_many_failed(self) -> str | None:
        """Of which records more failed than the job takes, in words: of the whole output, or of the newest night's.

        A night is judged by itself too: in a large output it would not show. How many records the lost rest of a
        compressed shard had, nobody knows.
        """
        if is_too_damaged(self.max_failed_fraction, self.n_cut):
            return (
                f"an unknown number of records failed, the rest of {self.n_cut:,} damaged compressed "
                f"shard{'s' if self.n_cut > 1 else ''}, and --max-failed-fraction is {self.max_failed_fraction}"
            )
        for failed, rows, new in ((self.failed, self.rows, ""), (self.night_failed, self.night_rows, "new ")):
            if is_above(self.max_failed_fraction, failed, rows):
                return (
                    f"{failed:,} of {rows:,} {new}records failed, more than --max-failed-fraction "
                    f"{self.max_failed_fraction}"
                )
        return None

    def lines(self) -> list[str]:
        """The summary as it is printed at the end of a job."""
        if self.estimate:
            return self.estimate.lines()
        if not self.seconds:
            what = "do" if self.is_done else "label"  # records may go with --prune
            lines = [f"nothing to {what}: all {self.rows:,} rows are labelled in {self.output}"]
        else:
            lines = [
                f"{self.new_rows:,} rows labelled in {self.seconds:,.1f} s "
                f"({self.new_rows / self.seconds:,.0f} rows/s, {self.new_tokens / self.seconds:,.0f} tokens/s)",
                f"{self.rows:,} rows in {self.output}, {self.failed:,} failed",
            ]
            if self.n_actors:
                share = self.busy_s / (self.n_actors * self.seconds)
                lines.append(
                    f"{self.n_actors} model actor{'s' if self.n_actors > 1 else ''} busy for {share:.0%} of that time"
                )
            if self.copied_tokens:
                share = self.copied_tokens / self.new_tokens
                lines.append(f"{share:.1%} of the tokens were in duplicates, which are computed once")
        for head, counts in self.labels.items():
            if counts:
                lines.append(f"{head}: " + ", ".join(f"{label} {count:,}" for label, count in counts.items()))
        lines += [f"failed: {reason} ({count:,})" for reason, count in self.reasons.items()]
        if others := self.failed - sum(self.reasons.values()):
            lines.append(f"failed: for other reasons ({others:,})")
        return lines
