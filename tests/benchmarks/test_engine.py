from __future__ import annotations

import numpy as np

from benchmarks.engine import LONGEST, SHORTEST, mixed_ids, padded


def test_texts_are_neither_shorter_nor_longer_than_the_table_says() -> None:
    lengths = [len(ids) for ids in mixed_ids(40)]
    assert len(lengths) == 40
    assert SHORTEST <= min(lengths) < max(lengths) <= LONGEST


def test_transformers_gets_neighbours_in_length_padded_to_the_longest() -> None:
    batches = list(padded([np.array(ids) for ids in ([7, 8, 9], [5], [3, 4, 5, 6], [1, 2])], batch_size=2))
    assert [ids.tolist() for ids, _ in batches] == [[[5, 0], [1, 2]], [[7, 8, 9, 0], [3, 4, 5, 6]]]
    assert [mask.tolist() for _, mask in batches] == [[[1, 0], [1, 1]], [[1, 1, 1, 0], [1, 1, 1, 1]]]
