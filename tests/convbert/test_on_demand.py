from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import convbert
from convbert import checkpoints, engine

PACKAGES = pytest.mark.parametrize("package", [convbert, checkpoints, engine], ids=lambda package: package.__name__)


@PACKAGES
def test_every_public_name_shows_before_anybody_has_asked_for_it(package: ModuleType) -> None:
    assert set(package.__all__) <= set(dir(package))


@PACKAGES
def test_a_name_that_is_not_public_is_no_name(package: ModuleType) -> None:
    with pytest.raises(AttributeError, match=f"module '{package.__name__}' has no attribute 'Tensor'"):
        package.Tensor  # noqa: B018, which is an attribute of modules where the public names are


def test_a_module_that_cannot_be_imported_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "a_package"
    package.mkdir()
    (package / "__init__.py").write_text(
        "from convbert.on_demand import on_demand\n"
        "__getattr__, __dir__ = on_demand(__name__, ['Thing'], modules=['broken'])\n"
    )
    (package / "broken.py").write_text("import math\nThing = math.no_such_function\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match=r"a_package\.broken cannot be imported: .*'no_such_function'"):
        from a_package import Thing  # noqa: F401


FROM_TEXT_TO_LOGITS = """
import sys
import convbert
from convbert.engine import is_lost_device

tokenizer = convbert.ConvBertTokenizer.from_pretrained(sys.argv[1])
assert tokenizer(["free mail"])["input_ids"]
assert not is_lost_device(RuntimeError("of the tokenizer"))
assert "ConvBertModel" in dir(convbert)
print("torch" in sys.modules)

assert issubclass(convbert.ConvBertForSequenceClassification, convbert.models.PreTrainedModel)
model = convbert.ConvBertForSequenceClassification.from_pretrained(sys.argv[1])
assert model(**tokenizer(["free mail"], return_tensors="pt")).logits.isfinite().all()
print("torch._dynamo" in sys.modules)
"""


def test_a_tokenizer_needs_no_torch_and_a_model_no_compiler(checkpoint: Path) -> None:
    command = [sys.executable, "-c", FROM_TEXT_TO_LOGITS, str(checkpoint)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.stdout.split(), done.returncode) == (["False", "False"], 0), done.stderr
