from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import convbert
from convbert import checkpoints, engine


@pytest.mark.parametrize("package", [convbert, checkpoints, engine], ids=lambda package: package.__name__)
def test_every_public_name_is_there_when_it_is_asked_for(package: ModuleType) -> None:
    assert all(hasattr(package, name) for name in package.__all__)
    assert engine.Engine.__module__ == "convbert.engine.run"


@pytest.mark.parametrize("package", [convbert, checkpoints, engine], ids=lambda package: package.__name__)
def test_a_name_that_is_not_public_is_no_name(package: ModuleType) -> None:
    with pytest.raises(AttributeError, match=f"module '{package.__name__}' has no attribute 'Tensor'"):
        package.Tensor  # noqa: B018, which is an attribute of modules where the public names are


FROM_TEXT_TO_LOGITS = """
import sys
from convbert import ConvBertConfig, ConvBertTokenizer

tokenizer = ConvBertTokenizer.from_pretrained(sys.argv[1])
assert tokenizer(["free mail"])["input_ids"]
print("torch" in sys.modules)

from convbert import ConvBertForSequenceClassification

model = ConvBertForSequenceClassification.from_pretrained(sys.argv[1])
assert model(**tokenizer(["free mail"], return_tensors="pt")).logits.isfinite().all()
print("torch._dynamo" in sys.modules)
"""


def test_a_tokenizer_needs_no_torch_and_a_model_no_compiler(checkpoint: Path) -> None:
    command = [sys.executable, "-c", FROM_TEXT_TO_LOGITS, str(checkpoint)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.stdout.split(), done.returncode) == (["False", "False"], 0), done.stderr
