from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from examples.brown.accuracy import count_right
from examples.brown.prepare import tokens_of, universal, written
from pipelines.models import describe_sharing, plan_passes
from tests.pipelines.labelling import job, label

BROWN = Path(__file__).resolve().parents[2] / "examples/brown"
HEADS = {name: str(BROWN / name) for name in ("pos", "prose")}


CLASSES = {
    "nn$-tl": "NOUN",
    "fw-at+nn-tl": "DET",
    "ppss+bem": "PRON",
    "bez*": "VERB",
    "*": "ADV",
    "pp$": "DET",
    "pp$$": "PRON",
    "to": "PRT",
    "in+in": "ADP",
    "nil": "X",
    "--": ".",
    "---hl": ".",
}


@pytest.mark.parametrize("tag", CLASSES)
def test_a_tag_of_the_corpus_has_a_universal_class(tag: str) -> None:
    assert universal(tag) == CLASSES[tag]


def test_a_tag_that_no_rule_knows_is_refused() -> None:
    with pytest.raises(ValueError, match="'zz' has no universal class"):
        universal("zz")


def test_tokens_become_text_as_people_write_it() -> None:
    line = (
        "``/`` Don't/do* go/vb ''/'' ,/, said/vbd Smith/np Jr./np (/( '/' Al/np '/' )/) ;/. ;/. "
        "he/pps left/vbd D.C./np ./."
    )
    sentence = written(tokens_of(line))
    assert sentence["text"] == "\"Don't go\", said Smith Jr. ('Al'); he left D.C."
    spans = zip(sentence["starts"], sentence["ends"], strict=True)
    words = ['"', "Don't", "go", '"', ",", "said", "Smith", "Jr.", "(", "'", "Al", "'", ")", ";", "he", "left", "D.C."]
    assert [sentence["text"][start:end] for start, end in spans] == words


def test_both_checkpoints_share_a_pass_and_label_as_the_corpus_does() -> None:
    """Floors lie well below what the whole corpus gives: README.md."""
    spec = job(head=HEADS, aggregation="words", max_batch_tokens=1000)
    passes = "one encoder pass: pos (token-classification), prose (text-classification)"
    assert describe_sharing(plan_passes(spec)) == passes

    sentences = pq.read_table(BROWN / "corpus/part-1.parquet").to_pylist()[::32]
    labelled = label(spec, text=[sentence["text"] for sentence in sentences])
    tokens = [sentence["tokens"].split() for sentence in sentences]
    right = sum(map(count_right, labelled["pos"].combine_chunks().field("entities").to_pylist(), tokens))
    assert right / sum(map(len, tokens)) >= 0.95
    kinds = labelled["prose"].combine_chunks().field("label").to_pylist()
    assert sum(kind == sentence["kind"] for kind, sentence in zip(kinds, sentences, strict=True)) >= 0.7 * len(
        sentences
    )
