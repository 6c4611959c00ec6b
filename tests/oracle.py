"""Transformers' answers, text by text: the expected values of parity tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

Answers = list[dict[str, Any]]


def _pipeline(task: str, checkpoint: Path, **options: Any) -> transformers.Pipeline:
    tokenizer = transformers.ConvBertTokenizer.from_pretrained(checkpoint)
    return transformers.pipeline(task, model=str(checkpoint), tokenizer=tokenizer, device="cpu", **options)


def classify(checkpoint: Path, texts: list[str], pairs: list[str] | None = None) -> Answers:
    """Label, score and all scores by class index."""
    run = _pipeline("text-classification", checkpoint, top_k=None)
    index = run.model.config.label2id
    inputs = texts if pairs is None else [{"text": a, "text_pair": b} for a, b in zip(texts, pairs, strict=True)]
    answers = []
    for text in inputs:
        ranked = run(text, truncation=True)
        ranked = ranked[0] if isinstance(ranked[0], list) else ranked
        scores = [entry["score"] for entry in sorted(ranked, key=lambda entry: index[entry["label"]])]
        answers.append({"label": ranked[0]["label"], "score": ranked[0]["score"], "scores": scores})
    return answers


def tag(checkpoint: Path, texts: list[str], *, aggregation: str) -> list[Answers]:
    """Entities {label, score, start, end, text}."""
    run = _pipeline("token-classification", checkpoint, aggregation_strategy=aggregation)
    return [
        [
            {
                "label": entity.get("entity_group", entity.get("entity")),
                "score": float(entity["score"]),
                "start": entity["start"],
                "end": entity["end"],
                "text": text[entity["start"] : entity["end"]],
            }
            for entity in run(text)
        ]
        for text in texts
    ]


def fill(checkpoint: Path, texts: list[str], *, top_k: int) -> list[list[Answers]]:
    """For each text and each [MASK]: {token, score, id}."""
    run = _pipeline("fill-mask", checkpoint, top_k=top_k)
    answers = []
    for text in texts:
        masks = run(text, tokenizer_kwargs={"truncation": True})
        masks = [masks] if isinstance(masks[0], dict) else masks
        answers.append(
            [[{"token": w["token_str"], "score": w["score"], "id": w["token"]} for w in words] for words in masks]
        )
    return answers


def embed(checkpoint: Path, texts: list[str]) -> list[torch.Tensor]:
    """Each text's last hidden states (L, H)."""
    run = _pipeline("feature-extraction", checkpoint, return_tensors=True, tokenize_kwargs={"truncation": True})
    return [run(text)[0] for text in texts]


def choose(checkpoint: Path, prompts: list[str], choices: list[list[str]]) -> list[torch.Tensor]:
    """Each record's probabilities over its choices, run alone and padded to its longest."""
    model = transformers.ConvBertForMultipleChoice.from_pretrained(checkpoint).eval()
    tokenizer = transformers.ConvBertTokenizer.from_pretrained(checkpoint)
    answers = []
    for prompt, texts in zip(prompts, choices, strict=True):
        encoded = tokenizer(
            [prompt] * len(texts), texts, truncation=True, max_length=128, padding=True, return_tensors="pt"
        )
        with torch.inference_mode():
            logits = model(**{name: values[None] for name, values in encoded.items()}).logits[0]
        answers.append(logits.softmax(-1))
    return answers


def pseudo_log_likelihood(checkpoint: Path, texts: list[str]) -> list[tuple[float, int]]:
    """Sum of log-probabilities and number of tokens, each token but special ones masked in turn."""
    model = transformers.ConvBertForMaskedLM.from_pretrained(checkpoint).eval()
    tokenizer = transformers.ConvBertTokenizer.from_pretrained(checkpoint)
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    answers = []
    for text in texts:
        ids = tokenizer(text, truncation=True, max_length=128, return_tensors="pt").input_ids
        scored = [place for place, token in enumerate(ids[0].tolist()) if token not in special]
        total = 0.0
        for place in scored:
            hidden = ids.clone()
            hidden[0, place] = tokenizer.mask_token_id
            with torch.inference_mode():
                total += float(model(hidden).logits[0, place].log_softmax(-1)[ids[0, place]])
        answers.append((total, len(scored)))
    return answers


def answer(
    checkpoint: Path, questions: list[str], contexts: list[str], *, max_length: int, stride: int, max_tokens: int = 15
) -> Answers:
    """The best answer by trying every span of every window: what the pipeline of Transformers 4 gives.

    Transformers 5 has no such pipeline; tests/pipelines/heads/data holds values that version 4 gave.
    """
    model = transformers.ConvBertForQuestionAnswering.from_pretrained(checkpoint).eval()
    tokenizer = transformers.ConvBertTokenizer.from_pretrained(checkpoint)
    answers = []
    for question, context in zip(questions, contexts, strict=True):
        windows = tokenizer(
            question, context, truncation="only_second", max_length=max_length, stride=stride,
            return_overflowing_tokens=True, return_offsets_mapping=True,
        )  # fmt: skip
        best = {"score": -1.0}
        for window, ids in enumerate(windows["input_ids"]):
            with torch.inference_mode():
                out = model(torch.tensor([ids]), token_type_ids=torch.tensor([windows["token_type_ids"][window]]))
            places = [place for place, text in enumerate(windows.sequence_ids(window)) if text == 1]
            allowed = torch.tensor([0, *places])
            starts, ends = (logits[0, allowed].softmax(-1)[1:] for logits in (out.start_logits, out.end_logits))
            for i in range(len(places)):
                for j in range(i, min(i + max_tokens, len(places))):
                    score = float(starts[i] * ends[j])
                    if score > best["score"]:
                        words = windows.word_ids(window)
                        start = windows.word_to_chars(window, words[places[i]], sequence_index=1).start
                        end = windows.word_to_chars(window, words[places[j]], sequence_index=1).end
                        best = {"answer": context[start:end], "score": score, "start": start, "end": end}
        answers.append(best)
    return answers
