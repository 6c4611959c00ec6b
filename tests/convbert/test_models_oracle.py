"""Every class equals Transformers': outputs, hidden states, attentions, losses and gradients, config corner by corner.

Forty random tiny configs a class, each with four kinds of mask; offline. Weights go from ours to theirs
with strict=True, which also proves that both have the same names.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import convbert
from convbert import ConvBertConfig

transformers = pytest.importorskip("transformers")

N_CONFIGS = 40
TOLERANCE = 1e-5
CLASSES = (
    "ConvBertModel",
    "ConvBertForMaskedLM",
    "ConvBertForSequenceClassification",
    "ConvBertForMultipleChoice",
    "ConvBertForTokenClassification",
    "ConvBertForQuestionAnswering",
)
MASKS = ("none", "right", "left", "scattered")
# Each list is walked at its own pace, so that 40 configs meet every value of each and most pairs.
KERNEL_SIZES = (1, 3, 5, 9, 11)
HEAD_RATIOS = (1, 2, 4, 8)
GROUPS = (1, 2, 3)
ACTIVATIONS = ("gelu", "gelu_new", "relu", "silu", "quick_gelu", "tanh", "mish")
PROBLEMS = (
    (1, None),
    (3, None),
    (4, "multi_label_classification"),
    (2, "regression"),
    (5, "single_label_classification"),
    (1, "regression"),
)


def tiny_config(seed: int) -> ConvBertConfig:
    """A config with odd sizes, from the seed alone."""
    rng = random.Random(seed)
    ratio, groups = HEAD_RATIOS[seed % 4], GROUPS[seed % 3]
    n_mixed, head_width = rng.randint(1, 3), rng.randint(1, 3) * groups  # heads that the ratio does not divide, too
    n_heads = rng.randint(1, ratio) if n_mixed == 1 and seed % 2 else n_mixed * ratio + rng.randrange(ratio)
    hidden_size = 2 * head_width * max(1, n_heads // ratio)
    n_labels, problem_type = PROBLEMS[seed % len(PROBLEMS)]
    return ConvBertConfig(
        vocab_size=rng.randint(11, 37),
        hidden_size=hidden_size,
        num_hidden_layers=rng.randint(1, 2),
        num_attention_heads=n_heads,
        intermediate_size=groups * rng.randint(2, 7),
        hidden_act=ACTIVATIONS[seed % len(ACTIVATIONS)],
        max_position_embeddings=rng.randint(11, 17),
        type_vocab_size=rng.randint(1, 4),
        initializer_range=0.3,
        layer_norm_eps=rng.choice((1e-12, 1e-5)),
        pad_token_id=rng.choice((None, 0, 1, 7)),
        embedding_size=hidden_size if rng.random() < 0.5 else rng.randint(3, 13),
        head_ratio=ratio,
        conv_kernel_size=KERNEL_SIZES[seed % 5],
        num_groups=groups,
        classifier_dropout=rng.choice((None, 0.0, 0.3)),
        problem_type=problem_type,
        id2label={label: f"label {label}" for label in range(n_labels)},
    )


def config_for(name: str, seed: int) -> ConvBertConfig:
    config = tiny_config(seed)
    if name == "ConvBertForQuestionAnswering":
        config.id2label = {0: "start", 1: "end"}
    rng = random.Random(f"{name} {seed}")
    if name == "ConvBertForMultipleChoice":
        config.extra = {
            "summary_type": rng.choice(("last", "first", "mean", "cls_index")),
            "summary_use_proj": rng.random() < 0.5,
            "summary_activation": rng.choice(("tanh", None, "relu")),
        }
    if name == "ConvBertForMaskedLM" and rng.random() < 0.2:
        config.tie_word_embeddings = False
    return config


def pair(name: str, config: ConvBertConfig) -> tuple[nn.Module, nn.Module]:
    """Ours with every weight drawn at random, norms and biases too, and theirs with the same weights."""
    ours = getattr(convbert, name)(config).eval()
    with torch.no_grad():
        for parameter_name, parameter in ours.named_parameters():
            mean = 1.0 if parameter_name.endswith("LayerNorm.weight") else 0.0
            parameter.copy_(mean + 0.3 * torch.randn_like(parameter))
    values = config.to_dict()
    values.pop("model_type")
    theirs = getattr(transformers, name)(transformers.ConvBertConfig(**values)).eval()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    return ours, theirs


def mask_of(kind: str, shape: tuple[int, ...]) -> Tensor | None:
    """1 for tokens, 0 for padding: rows of several lengths, one of them whole, and one row that sees nothing."""
    n_tokens = shape[-1]
    places = torch.arange(n_tokens).expand(shape)
    lengths = torch.randint(1, n_tokens + 1, (*shape[:-1], 1))
    if kind == "none":
        return None
    if kind == "right":
        return (places < lengths).long()
    if kind == "left":
        return (places >= n_tokens - lengths).long()
    mask = (torch.rand(shape) < 0.6).long()
    mask.view(-1, n_tokens)[0] = 0
    return mask


def inputs_of(name: str, config: ConvBertConfig, kind: str, seed: int) -> dict[str, Tensor]:
    """A batch with labels; by turns with token types, positions, and embeddings in place of ids."""
    rng = random.Random(f"{kind} {seed}")
    n_tokens = rng.randint(1, config.max_position_embeddings)
    shape = (2, 3, n_tokens) if name == "ConvBertForMultipleChoice" else (3, n_tokens)
    inputs: dict[str, Tensor | None] = {"attention_mask": mask_of(kind, shape)}
    if rng.random() < 0.25:
        inputs["inputs_embeds"] = torch.randn(*shape, config.embedding_size)
    else:
        inputs["input_ids"] = torch.randint(config.vocab_size, shape)
    if rng.random() < 0.6:
        inputs["token_type_ids"] = torch.randint(config.type_vocab_size, shape)
    if rng.random() < 0.4:
        inputs["position_ids"] = torch.randint(config.max_position_embeddings, shape)
    inputs.update(labels_of(name, config, n_tokens))
    return {key: tensor for key, tensor in inputs.items() if tensor is not None}


def labels_of(name: str, config: ConvBertConfig, n_tokens: int) -> dict[str, Tensor]:
    n_labels = config.num_labels
    match name, config.problem_type:
        case "ConvBertModel", _:
            return {}
        case "ConvBertForMaskedLM", _:
            labels = torch.randint(config.vocab_size, (3, n_tokens))
        case "ConvBertForTokenClassification", _:
            labels = torch.randint(n_labels, (3, n_tokens))
        case "ConvBertForMultipleChoice", _:
            return {"labels": torch.randint(3, (2,))}
        case "ConvBertForQuestionAnswering", _:  # the second lies outside the window, the third before it
            outside = torch.tensor([0, n_tokens + 5, -1])
            return {"start_positions": outside, "end_positions": torch.randint(n_tokens, (3, 1))}
        case _, "multi_label_classification":
            return {"labels": torch.randint(2, (3, n_labels)).float()}
        case _, "regression" | None if n_labels == 1 or config.problem_type:
            return {"labels": torch.randn(3) if n_labels == 1 else torch.randn(3, n_labels)}
        case _:
            return {"labels": torch.randint(n_labels, (3,))}
    labels[torch.rand(labels.shape) < 0.3] = -100
    labels[0, 0] = 0  # one that counts
    return {"labels": labels}


def assert_equal(ours: Tensor, theirs: Tensor, what: str) -> None:
    """Within TOLERANCE of the larger of 1 and the tensor's own scale."""
    assert ours.shape == theirs.shape, what
    scale = max(1.0, float(theirs.detach().abs().max())) if theirs.numel() else 1.0
    error = float((ours - theirs).detach().abs().max()) if theirs.numel() else 0.0
    assert error <= TOLERANCE * scale, f"{what}: {error:.2e} at scale {scale:.2e}"


def outputs_of(output: Any) -> Iterator[tuple[str, Tensor]]:
    for field in ("loss", "last_hidden_state", "logits", "start_logits", "end_logits"):
        if getattr(output, field, None) is not None:
            yield field, getattr(output, field)
    for field in ("hidden_states", "attentions"):
        for layer, tensor in enumerate(getattr(output, field)):
            yield f"{field}[{layer}]", tensor


@pytest.mark.parametrize("seed", range(N_CONFIGS))
@pytest.mark.parametrize("name", CLASSES)
def test_equals_transformers(name: str, seed: int) -> None:
    torch.manual_seed(seed)
    config = config_for(name, seed)
    ours, theirs = pair(name, config)
    for kind in MASKS:
        inputs = inputs_of(name, config, kind, seed)
        results = []
        for model in (ours, theirs):
            model.zero_grad()
            output = model(**inputs, output_hidden_states=True, output_attentions=True)
            main = output.last_hidden_state.square().sum() if name == "ConvBertModel" else output.loss
            main.backward()
            gradients = {key: p.grad for key, p in model.named_parameters() if p.grad is not None}
            results.append((dict(outputs_of(output)), gradients))
        (our_outputs, our_gradients), (their_outputs, their_gradients) = results
        assert our_outputs.keys() == their_outputs.keys()
        assert our_gradients.keys() == their_gradients.keys()
        for what in their_outputs:
            assert_equal(our_outputs[what], their_outputs[what], f"{kind}: {what}")
        for what in their_gradients:
            assert_equal(our_gradients[what], their_gradients[what], f"{kind}: gradient of {what}")


def test_the_configs_meet_every_corner() -> None:
    configs = [tiny_config(seed) for seed in range(N_CONFIGS)]
    assert {(c.head_ratio, c.conv_kernel_size) for c in configs} == set(itertools.product(HEAD_RATIOS, KERNEL_SIZES))
    assert {(c.head_ratio, c.num_groups) for c in configs} == set(itertools.product(HEAD_RATIOS, GROUPS))
    assert {c.hidden_act for c in configs} == set(ACTIVATIONS)
    assert {c.type_vocab_size for c in configs} == {1, 2, 3, 4}
    assert any(c.num_attention_heads < c.head_ratio for c in configs)
    assert any(c.num_attention_heads % c.head_ratio and c.n_mixed_heads > 1 for c in configs)
    assert {c.embedding_size == c.hidden_size for c in configs} == {True, False}
