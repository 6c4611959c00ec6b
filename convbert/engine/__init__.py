"""Packed inference: flat ids and offsets in, each record's own result out.

Every result equals what the model gives for that record alone, unpadded, whatever shares its batch.
"""

from typing import TYPE_CHECKING

from convbert.engine.failures import is_lost_device, is_out_of_memory
from convbert.engine.packing import Packed, Rows, micro_batches
from convbert.on_demand import on_demand

if TYPE_CHECKING:
    from convbert.engine.encoder import PackedEncoder
    from convbert.engine.heads import (
        EachToken,
        FirstToken,
        Head,
        Likeliest,
        Pooled,
        Probabilities,
        PseudoLikelihood,
        TokensWithId,
        WholeRecord,
    )
    from convbert.engine.precision import PRECISIONS
    from convbert.engine.run import Engine

__all__ = [
    "PRECISIONS",
    "EachToken",
    "Engine",
    "FirstToken",
    "Head",
    "Likeliest",
    "Packed",
    "PackedEncoder",
    "Pooled",
    "Probabilities",
    "PseudoLikelihood",
    "Rows",
    "TokensWithId",
    "WholeRecord",
    "is_lost_device",
    "is_out_of_memory",
    "micro_batches",
]

if not TYPE_CHECKING:
    __getattr__, __dir__ = on_demand(__name__, __all__, modules=["run", "encoder", "heads", "precision"])
