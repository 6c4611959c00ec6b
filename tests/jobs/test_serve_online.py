from __future__ import annotations

from pathlib import Path

import pytest

from jobs.serve_online import main, parse


def test_flags_override_the_configuration(tmp_path: Path) -> None:
    config = tmp_path / "serve.yaml"
    config.write_text("head: {spam: a}\nport: 9000\nmax_replicas: 3\nsettings: {threshold: 0.2}\n", encoding="utf-8")
    spec = parse(["--config", str(config), "--embed", "vectors=b", "--port", "9001"])
    assert (spec.urls, spec.port, spec.max_replicas) == ({"spam": "a", "vectors": "b"}, 9001, 3)
    assert spec.settings == {"threshold": 0.2}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "error: no model: give head, embed or both, as NAME=URL"),
        (["--head", "spam"], "error: --head spam: give NAME=URL, such as --head topic=checkpoints/topic"),
    ],
)
def test_misuse_is_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert capsys.readouterr().err == f"{message}\n"
