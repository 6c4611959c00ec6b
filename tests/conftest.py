"""What many tests share: tiny checkpoints made by Transformers with random weights, and one Ray cluster."""

from __future__ import annotations

import gc
import json
import logging
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # read when Ray is imported
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import fsspec
import hypothesis
import torch
import transformers

from tests.fault_proxy import FaultProxy

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
torch.set_num_threads(1)  # of tiny models: a second one would mostly wait
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when Triton is imported: its kernels run as Python
hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True)  # whatever else the machine does
hypothesis.settings.load_profile("repeatable")

READ_TIMEOUT_S = 1.0  # of the clients of the tests' S3 server
LETTERS = "abcdefghijklmnopqrstuvwxyz"
VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *(f"##{c}" for c in LETTERS + "0123456789")]
VOCAB += [*"0123456789", "the", "mail", "free", "offer", "##ing", "now", ".", ",", "!"]


def pytest_collection_finish() -> None:
    """Leave what is imported by now out of the garbage collector's rounds, which take a third of many tests' time."""
    gc.collect()
    gc.freeze()


def tiny_config(**changes: Any) -> transformers.ConvBertConfig:
    """A small configuration with weights large enough for outputs to differ."""
    values = {
        "vocab_size": len(VOCAB),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "embedding_size": 16,
        "max_position_embeddings": 128,
        "pad_token_id": 0,
        "initializer_range": 0.3,
    }
    return transformers.ConvBertConfig(**{**values, **changes})


def save_checkpoint(
    folder: Path, *, architecture: str = "ConvBertForSequenceClassification", seed: int = 0, **changes: Any
) -> Path:
    """A checkpoint as Transformers saves it, with a vocab.txt."""
    torch.manual_seed(seed)
    getattr(transformers, architecture)(tiny_config(**changes)).save_pretrained(folder)
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in VOCAB), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 128}', encoding="utf-8")
    return folder


def with_labels(*names: str) -> dict[str, Any]:
    """The configuration's two mappings of these labels."""
    return {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-label checkpoint folder, written by Transformers."""
    return save_checkpoint(tmp_path_factory.mktemp("checkpoint"), **with_labels("ham", "spam"))


@pytest.fixture
def sentences() -> list[str]:
    """Texts of mixed lengths, from none to more than the tiny model takes."""
    rng = random.Random(7)
    words = ["the", "free", "mail", "offer", "now", "offering", "zebra", "x", "12", "!", "Ünïcode", "日本"]
    return [" ".join(rng.choices(words, k=n)) for n in (0, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 3, 3)]


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultProxy]:
    """An S3 server process's worth of moto on a free port, found through the environment like a real store.

    Every request goes through the proxy, which spoils some where a test asks it to.
    """
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    settings = {"config_kwargs": {"read_timeout": READ_TIMEOUT_S}}
    os.environ |= {"AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true"}
    os.environ |= {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing"}
    os.environ |= {"FSSPEC_S3": json.dumps(settings), "CONVBERT_CACHE": str(tmp_path_factory.mktemp("cache"))}
    fsspec.config.conf["s3"] = settings  # this process has read its environment already
    with FaultProxy(server.get_host_and_port(), delay_s=1.2 * READ_TIMEOUT_S) as proxy:
        os.environ["AWS_ENDPOINT_URL"] = proxy.url
        fsspec.filesystem("s3").mkdir("bucket")
        yield proxy
    server.stop()


@pytest.fixture(scope="session")
def ray_cluster(s3: FaultProxy) -> Iterator[None]:
    """The one Ray cluster of the test session; its workers see the environment of this moment."""
    import ray

    ray.init(
        "local",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=300 * 2**20,
        logging_level="ERROR",
        _system_config={
            "num_workers_soft_limit": 8,  # idle workers, which else are started for every run anew
            "metrics_report_interval_ms": 1000,
        },
    )
    yield
    ray.shutdown()
