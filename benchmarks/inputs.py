"""What the benchmarks measure on: real texts as they come, and models of published sizes with random weights."""

from __future__ import annotations

import ast
import itertools
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
import torch
import transformers

ROOT = Path(__file__).parents[1]
CHECKPOINT = ROOT / "examples/spam/checkpoint"
SIZES = {
    "base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072},
    "small": {"hidden_size": 256, "num_hidden_layers": 12, "num_attention_heads": 4, "intermediate_size": 1024},
}


def texts(n_texts: int) -> list[str]:
    """The first texts of every Parquet shard of the spam corpus in turn."""
    shards = sorted((ROOT / "examples/spam/corpus").glob("*.parquet"))
    columns = [ds.dataset(path).to_table(["text"])["text"].to_pylist() for path in shards]
    return [text for row in itertools.zip_longest(*columns) for text in row if text is not None][:n_texts]


def docstrings(n_texts: int) -> list[str]:
    """The first docstrings of Python's standard library, file by file: short and long ones, as they come."""
    root = Path(sysconfig.get_paths()["stdlib"])
    files = sorted(root.rglob("*.py"))
    found = itertools.chain.from_iterable(map(_docstrings_of, (path for path in files if _is_library(path, root))))
    return list(itertools.islice(found, n_texts))


def _is_library(path: Path, root: Path) -> bool:
    return not {"site-packages", "dist-packages", "test", "tests"} & set(path.relative_to(root).parts)


def _docstrings_of(path: Path) -> Iterator[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of old escapes in what is parsed
        tree = ast.parse(path.read_bytes())
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from filter(None, [ast.get_docstring(node)])


def make_model(architecture: str, size: str, **config: Any) -> transformers.PreTrainedModel:
    """A Transformers model of that size with random weights, for the spam example's vocabulary."""
    torch.manual_seed(0)
    vocab_size = len((CHECKPOINT / "vocab.txt").read_text(encoding="utf-8").splitlines())
    shape = {**SIZES[size], "embedding_size": SIZES[size]["hidden_size"]}
    return getattr(transformers, architecture)(
        transformers.ConvBertConfig(vocab_size=vocab_size, pad_token_id=0, **shape, **config)
    )


def save(model: transformers.PreTrainedModel, folder: Path) -> Path:
    """The model as a checkpoint folder, with the spam example's vocabulary."""
    model.save_pretrained(folder)
    (folder / "vocab.txt").write_text((CHECKPOINT / "vocab.txt").read_text(encoding="utf-8"), encoding="utf-8")
    return folder
