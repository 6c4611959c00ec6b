"""Labelled parts in, agreement with the known labels out."""

from __future__ import annotations

import sys
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.dataset as ds


def main(output: str) -> None:
    """Print how many e-mails the job labelled as people did."""
    parts = ds.dataset(sorted(Path(output).glob("part-*"))).to_table(["label", "spam", "error"])
    predicted = pc.struct_field(parts["spam"], "label")
    right = pc.sum(pc.equal(predicted, parts["label"])).as_py()
    missed = pc.sum(pc.and_(pc.equal(predicted, "ham"), pc.equal(parts["label"], "spam"))).as_py()
    alarms = pc.sum(pc.and_(pc.equal(predicted, "spam"), pc.equal(parts["label"], "ham"))).as_py()
    print(f"accuracy {right / len(parts):.4f} on {len(parts):,} e-mails: {missed} spam missed, {alarms} false alarms")


if __name__ == "__main__":
    main(sys.argv[1])
