"""Makes data/question_answering: a tiny checkpoint, and what Transformers 4's pipeline answers with it.

Transformers 5 has no question-answering pipeline. Run in an environment with transformers==4.46.3:
python tests/pipelines/heads/make_question_answers.py
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import torch
import transformers

FOLDER = Path(__file__).parent / "data/question_answering"
WORDS = ["the", "free", "mail", "offer", "now", "offering", "zebra", "x", "12", "!", "Ünïcode", "日本", "don't"]
LETTERS = "abcdefghijklmnopqrstuvwxyz"
VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *(f"##{c}" for c in LETTERS + "0123456789")]
VOCAB += [*"0123456789", "the", "mail", "free", "offer", "##ing", "now", ".", ",", "!"]
OPTIONS = [
    {},
    {"top_k": 3},
    {"max_seq_len": 48, "doc_stride": 10},
    {"max_seq_len": 48, "doc_stride": 10, "top_k": 4, "max_answer_len": 3},
    {"handle_impossible_answer": True, "max_answer_len": 1},
    {"handle_impossible_answer": True, "top_k": 5},
]


def main() -> None:
    """Write config.json, model.safetensors, vocab.txt and answers.json."""
    torch.manual_seed(11)
    config = transformers.ConvBertConfig(
        vocab_size=len(VOCAB),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        embedding_size=16,
        max_position_embeddings=128,
        pad_token_id=0,
        initializer_range=0.3,
    )
    FOLDER.mkdir(parents=True, exist_ok=True)
    model = transformers.ConvBertForQuestionAnswering(config).eval()
    model.save_pretrained(FOLDER)
    (FOLDER / "vocab.txt").write_text("".join(f"{token}\n" for token in VOCAB), encoding="utf-8")
    (FOLDER / "tokenizer_config.json").write_text('{"model_max_length": 128}', encoding="utf-8")
    tokenizer = transformers.ConvBertTokenizerFast.from_pretrained(FOLDER)
    run = transformers.pipeline("question-answering", model=model, tokenizer=tokenizer, device="cpu")
    rng = random.Random(3)
    records = [
        {"question": " ".join(rng.choices(WORDS, k=rng.randint(1, 4))), "context": " ".join(rng.choices(WORDS, k=n))}
        for n in (1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144)
    ]
    cases = [{"options": options, "answers": [run(**record, **options) for record in records]} for options in OPTIONS]
    text = json.dumps({"records": records, "cases": cases}, indent=1, ensure_ascii=False)
    (FOLDER / "answers.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
