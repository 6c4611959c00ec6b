"""What TensorFlow itself writes, and computes, into data/tensorflow.zip: the oracle of test_tensorflow.py.

Nothing here runs in the tests. To make the archive again:

    python3.11 -m venv /tmp/tf && /tmp/tf/bin/pip install 'transformers==4.46.3' 'tensorflow-cpu==2.17.*' \
        tf-keras 'torch==2.13.0' h5py
    TF_USE_LEGACY_KERAS=1 /tmp/tf/bin/python tests/convbert/checkpoints/make_tensorflow_exports.py

Each folder of the archive is a checkpoint as Transformers 4.46.3 (the last with TensorFlow classes of
ConvBERT) or TensorFlow's Saver wrote it, with expected.npz beside it: inputs, and the outputs of the very
model that was saved. For the original TF1 layout the expected outputs are those of Transformers' own
conversion script.
"""

from __future__ import annotations

import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

ARCHIVE = Path(__file__).parent / "data" / "tensorflow.zip"
N_TOKENS = 7
BASE: dict[str, Any] = {
    "vocab_size": 19,
    "hidden_size": 12,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 18,
    "embedding_size": 12,
    "max_position_embeddings": 9,
    "type_vocab_size": 2,
    "head_ratio": 2,
    "num_groups": 1,
    "conv_kernel_size": 3,
    "pad_token_id": 0,
    "hidden_act": "gelu",
}
# folder: class, how it differs from BASE, arguments of save_pretrained
EXPORTS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "Model": ("Model", {"num_hidden_layers": 2, "num_groups": 2, "embedding_size": 5, "conv_kernel_size": 9}, {}),
    "ForMaskedLM": ("ForMaskedLM", {"num_groups": 3, "embedding_size": 7, "hidden_act": "relu"}, {}),
    "ForSequenceClassification": ("ForSequenceClassification", {"num_labels": 3, "hidden_act": "gelu_new"}, {}),
    "ForMultipleChoice": (
        "ForMultipleChoice",
        {"summary_type": "first", "summary_use_proj": True, "summary_activation": "tanh", "num_groups": 2},
        {},
    ),
    "ForTokenClassification": ("ForTokenClassification", {"num_labels": 5, "conv_kernel_size": 1}, {}),
    "ForQuestionAnswering": ("ForQuestionAnswering", {"num_attention_heads": 2, "hidden_act": "silu"}, {}),
    "sharded": ("ForMaskedLM", {"num_hidden_layers": 2, "num_groups": 2}, {"max_shard_size": "4KB"}),
    "safetensors": ("ForTokenClassification", {"num_groups": 2}, {"safe_serialization": True}),
}


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        for name, (kind, changes, arguments) in EXPORTS.items():
            export_keras(root / name, kind, {**BASE, **changes}, arguments)
        export_tf1(root / "tf1", {**BASE, "num_groups": 2, "embedding_size": 5, "num_hidden_layers": 2})
        export_tf1(root / "tf1_dense", {**BASE, "conv_kernel_size": 5})
        write_archive(root)


def export_keras(folder: Path, kind: str, values: dict[str, Any], arguments: dict[str, Any]) -> None:
    import tensorflow as tf
    import transformers

    rng = np.random.default_rng(len(folder.name))
    model = getattr(transformers, f"TFConvBert{kind}")(transformers.ConvBertConfig(**values))
    shape = (2, 3, N_TOKENS) if kind == "ForMultipleChoice" else (3, N_TOKENS)
    lengths = rng.integers(1, N_TOKENS + 1, (*shape[:-1], 1))
    places = np.broadcast_to(np.arange(N_TOKENS), shape)
    inputs = {
        "input_ids": rng.integers(0, values["vocab_size"], shape),
        "token_type_ids": rng.integers(0, values["type_vocab_size"], shape),
    }
    masks = {
        "right": places < lengths,
        "left": places >= N_TOKENS - lengths,
        "scattered": (rng.random(shape) < 0.6) | (places == 2),
    }
    model({name: tf.constant(array) for name, array in inputs.items()})  # builds the weights
    for weight in model.weights:
        weight.assign_add(0.3 * rng.normal(size=weight.shape))
    expected = dict(inputs)
    for mask_name, mask in [("none", None), *masks.items()]:
        batch = {**inputs, "attention_mask": np.ones(shape, int) if mask is None else mask.astype(int)}
        output = model({name: tf.constant(array) for name, array in batch.items()})
        expected[f"mask.{mask_name}"] = batch["attention_mask"]
        expected.update({f"{mask_name}.{field}": tensor.numpy() for field, tensor in output.items()})
    model.save_pretrained(folder, **arguments)
    np.savez(folder / "expected.npz", **expected)


def export_tf1(folder: Path, values: dict[str, Any]) -> None:
    """The original repository's names and shapes, optimizer slots and step counter included; no config.json."""
    import tensorflow as tf
    import torch
    import transformers
    from transformers.models.convbert.modeling_convbert import load_tf_weights_in_convbert

    folder.mkdir()
    rng = np.random.default_rng(1)
    graph = tf.Graph()
    with graph.as_default():
        for name, shape in tf1_shapes(values).items():
            array = (0.3 * rng.normal(size=shape) + name.endswith("gamma")).astype(np.float32)
            for slot in ("", "/adam_m", "/adam_v"):
                tf.compat.v1.get_variable(name + slot, initializer=array if not slot else 0 * array)
        tf.compat.v1.get_variable("global_step", initializer=np.int64(7), trainable=False)
        with tf.compat.v1.Session() as session:
            session.run(tf.compat.v1.global_variables_initializer())
            tf.compat.v1.train.Saver().save(session, str(folder / "model.ckpt"), write_meta_graph=False)
    config = transformers.ConvBertConfig(**values)
    model = transformers.ConvBertModel(config).eval()
    load_tf_weights_in_convbert(model, config, str(folder / "model.ckpt"))
    ids = rng.integers(0, values["vocab_size"], (3, N_TOKENS))
    with torch.no_grad():
        hidden = model(torch.from_numpy(ids)).last_hidden_state.numpy()
    sizes = {name: value for name, value in values.items() if isinstance(value, int)}
    np.savez(folder / "expected.npz", input_ids=ids, last_hidden_state=hidden, **sizes)


def tf1_shapes(values: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    hidden, embedding, width = values["hidden_size"], values["embedding_size"], values["intermediate_size"]
    groups, taps = values["num_groups"], values["conv_kernel_size"]
    heads = values["num_attention_heads"] // values["head_ratio"]
    attention = hidden // 2
    shapes: dict[str, tuple[int, ...]] = {
        "electra/embeddings/word_embeddings": (values["vocab_size"], embedding),
        "electra/embeddings/token_type_embeddings": (values["type_vocab_size"], embedding),
        "electra/embeddings/position_embeddings": (values["max_position_embeddings"], embedding),
        "electra/embeddings/LayerNorm/gamma": (embedding,),
        "electra/embeddings/LayerNorm/beta": (embedding,),
    }
    if embedding != hidden:
        shapes["electra/embeddings_project/kernel"] = (embedding, hidden)
        shapes["electra/embeddings_project/bias"] = (hidden,)
    dense = "dense" if groups == 1 else "g_dense"

    def kernel(n_in: int, n_out: int) -> tuple[int, ...]:
        return (n_in, n_out) if groups == 1 else (groups, n_in // groups, n_out // groups)

    for layer in range(values["num_hidden_layers"]):
        scope = f"electra/encoder/layer_{layer}"
        mixed = f"{scope}/attention/self"
        for name in ("query", "key", "value", "conv_attn_point"):
            shapes[f"{mixed}/{name}/kernel"], shapes[f"{mixed}/{name}/bias"] = (hidden, attention), (attention,)
        shapes[f"{mixed}/conv_attn_key/depthwise_kernel"] = (taps, hidden, 1)
        shapes[f"{mixed}/conv_attn_key/pointwise_kernel"] = (1, hidden, attention)
        shapes[f"{mixed}/conv_attn_key/bias"] = (attention,)
        shapes[f"{mixed}/conv_attn_kernel/kernel"] = (attention, heads * taps)
        shapes[f"{mixed}/conv_attn_kernel/bias"] = (heads * taps,)
        shapes[f"{scope}/attention/output/dense/kernel"] = (hidden, hidden)
        shapes[f"{scope}/attention/output/dense/bias"] = (hidden,)
        shapes[f"{scope}/intermediate/{dense}/kernel"] = kernel(hidden, width)
        shapes[f"{scope}/intermediate/{dense}/bias"] = (width,)
        shapes[f"{scope}/output/{dense}/kernel"] = kernel(width, hidden)
        shapes[f"{scope}/output/{dense}/bias"] = (hidden,)
        for norm in (f"{scope}/attention/output/LayerNorm", f"{scope}/output/LayerNorm"):
            shapes[f"{norm}/gamma"], shapes[f"{norm}/beta"] = (hidden,), (hidden,)
    return shapes


def write_archive(root: Path) -> None:
    ARCHIVE.parent.mkdir(exist_ok=True)
    with zipfile.ZipFile(ARCHIVE, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for path in sorted(root.rglob("*")):
            if path.is_file():
                entry = zipfile.ZipInfo(str(path.relative_to(root)), (1980, 1, 1, 0, 0, 0))
                entry.compress_type = zipfile.ZIP_DEFLATED
                archive.writestr(entry, path.read_bytes(), compresslevel=9)


if __name__ == "__main__":
    main()
