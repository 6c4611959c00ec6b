"""Packed inference: flat ids and offsets in, each record's own result out.

Every result equals what the model gives for that record alone, unpadded, whatever shares its batch.
"""

from convbert.engine.encoder import PackedEncoder
from convbert.engine.heads import (
    EachToken,
    FirstToken,
    Head,
    Pooled,
    PseudoLikelihood,
    Rows,
    TokensWithId,
    WholeRecord,
)
from convbert.engine.packing import Packed, micro_batches
from convbert.engine.precision import PRECISIONS
from convbert.engine.run import Engine, is_out_of_memory

__all__ = [
    "PRECISIONS",
    "EachToken",
    "Engine",
    "FirstToken",
    "Head",
    "Packed",
    "PackedEncoder",
    "Pooled",
    "PseudoLikelihood",
    "Rows",
    "TokensWithId",
    "WholeRecord",
    "is_out_of_memory",
    "micro_batches",
]
