"""Packed inference: flat ids and offsets in, each record's own result out.

Every result equals what the model gives for that record alone, unpadded, whatever shares its batch.
"""

from convbert.engine.encoder import PackedEncoder
from convbert.engine.packing import Packed, micro_batches
from convbert.engine.run import Engine, RecordHead, first_token

__all__ = ["Engine", "Packed", "PackedEncoder", "RecordHead", "first_token", "micro_batches"]
