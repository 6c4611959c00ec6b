"""Transformers' answers, text by text: the expected values of parity tests."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers


def classify(checkpoint: Path, texts: list[str], *, max_length: int = 128) -> list[dict[str, object]]:
    """Label, score and all scores of each text, run alone and unpadded."""
    model = transformers.ConvBertForSequenceClassification.from_pretrained(checkpoint).eval()
    tokenizer = transformers.ConvBertTokenizer.from_pretrained(checkpoint)
    answers = []
    for text in texts:
        encoded = tokenizer(text, truncation=True, max_length=max_length, return_tensors="pt")
        with torch.inference_mode():
            scores = model(**encoded).logits[0].softmax(-1)
        best = int(scores.argmax())
        answers.append({"label": model.config.id2label[best], "score": float(scores[best]), "scores": scores.tolist()})
    return answers
