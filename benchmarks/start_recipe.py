"""The recipe of Ray's documentation as a script of its own: what benchmarks/start.py starts against a job.

python -m benchmarks.start_recipe corpus.parquet checkpoint/ output/
"""

from __future__ import annotations

import sys
from typing import Any

import ray
import torch
import transformers
from ray.data import ActorPoolStrategy


class Classifier:
    """Tokenise, pad to the batch's longest, run, take the best label."""

    def __init__(self, checkpoint: str) -> None:
        self._tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
        self._model = transformers.ConvBertForSequenceClassification.from_pretrained(checkpoint).eval()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch with a label for each text."""
        inputs = self._tokenizer(list(batch["text"]), padding=True, truncation=True, return_tensors="pt")
        with torch.inference_mode():
            batch["label"] = self._model(**inputs).logits.argmax(-1).numpy()
        return batch


if __name__ == "__main__":
    corpus, checkpoint, output = sys.argv[1:]
    ray.data.read_parquet(corpus).map_batches(
        Classifier, fn_constructor_args=[checkpoint], batch_size=32, compute=ActorPoolStrategy(size=1), num_cpus=1
    ).write_parquet(output)
