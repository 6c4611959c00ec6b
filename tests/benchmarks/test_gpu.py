from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from benchmarks import gpu

ROOT = Path(__file__).parents[2]


def test_it_runs_without_a_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu", "--device", "cpu", "--size", "tiny", "--rounds", "1"])
    gpu.main()
    printed = capsys.readouterr().out
    assert "this only shows that the benchmark runs" in printed
    table = [line.split(" | ") for line in printed.splitlines() if line.startswith("| engine")]
    assert [cells[2] for cells in table] == ["≥ 0.55", "≥ 4", ""]
    assert all(float(cells[3]) > 0 for cells in table)


def test_it_needs_neither_ray_nor_arrow() -> None:
    block = "import sys; sys.modules.update(dict.fromkeys(['ray', 'pyarrow', 'pydantic', 'pipelines']))"
    run = subprocess.run(
        [sys.executable, "-c", f"{block}; import benchmarks.gpu"], capture_output=True, text=True, cwd=ROOT
    )
    assert run.returncode == 0, run.stderr


def test_without_a_gpu_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu"])
    with pytest.raises(SystemExit):
        gpu.main()
    assert "--device cpu --size tiny" in capsys.readouterr().err


def test_flops_are_those_of_every_product() -> None:
    """163 MFLOP a token at base size, counted from the weights of the modules, and 4 · L² · A for attention."""
    config = transformers.ConvBertConfig()
    with torch.device("meta"):
        encoder = transformers.ConvBertModel(config).encoder
    n_weights = sum(w.numel() for name, w in encoder.named_parameters() if w.dim() > 1 and "depthwise" not in name)
    n_weights -= sum(w.numel() for name, w in encoder.named_parameters() if name.endswith("key_conv_attn_layer.bias"))
    lengths = np.array([10, 500])
    attention = 12 * 4 * 384 * (10**2 + 500**2)
    assert gpu.flops_of(lengths, config) == 2 * n_weights * 510 + attention
    assert math.isclose(2 * n_weights / 1e6, 163, rel_tol=0.01)


def test_lengths_are_mixed_as_the_text_says() -> None:
    lengths = gpu.mixed_lengths(8192)
    assert (lengths.min(), lengths.max()) == (20, 512)
    long = lengths[lengths > 285]
    assert abs(len(long) / len(lengths) - 0.10) < 0.02
    assert abs(long.sum() / lengths.sum() - 0.33) < 0.05


def test_transformers_gets_neighbours_in_length() -> None:
    records = gpu.packed(np.array([2, 4, 1]), 50)
    (ids, mask), (last, _) = gpu.padded(records, 2)
    assert mask.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert ids[0].tolist() == records.input_ids[2:6].tolist()
    assert last.tolist() == [[records.input_ids[6]]]
