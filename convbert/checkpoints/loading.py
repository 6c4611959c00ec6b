"""Weights by name and a model in, the model with the weights and what did not meet out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from convbert.errors import WeightsError

MOST_MISSING = 2**30  # 4 GiB; a head on an encoder has a thousandth


class LoadReport(NamedTuple):
    """Names that did not meet: ``missing`` keep their initialisation, ``unexpected`` are not used.

    Weights that were left out for their shape are missing.
    """

    missing: list[str]
    unexpected: list[str]


def fitted(
    model: nn.Module, weights: Mapping[str, Tensor], *, base_prefix: str, source: str
) -> tuple[dict[str, Tensor], LoadReport]:
    """The weights by the model's names, all of them such as the model has, and the names that did not meet.

    Names of the base model carry ``base_prefix`` inside task models; it is added or stripped where the
    checkpoint and the model differ in that. Of tied weights, which a checkpoint may hold under one name or under
    both, one is enough. The model may lie on the meta device: what its config claims is checked before there is
    memory for it.

    Raises:
        WeightsError: a weight of another shape than the model's, or of integers or floats of 8 bits, whose scales
            stand elsewhere; or a model that is far larger than its weights.
    """
    own = model.state_dict()
    found = _with_prefix_of(own, weights, base_prefix)
    for name in sorted(own.keys() & found.keys()):
        if own[name].shape != found[name].shape:
            raise WeightsError(
                f"{name} of {source} has shape {tuple(found[name].shape)}, but the config asks for "
                f"{tuple(own[name].shape)}: config.json and weights do not belong together; "
                "from_pretrained(…, ignore_mismatched_sizes=True) would start it anew"
            )
        is_weight = own[name].is_floating_point()
        if is_weight and (not found[name].is_floating_point() or found[name].element_size() < 2):
            raise WeightsError(
                f"{name} of {source} holds {found[name].dtype}, no floating-point weights of 16 bits or more: "
                "give the checkpoint before its quantisation"
            )
    n_missing = sum(parameter.numel() for name, parameter in model.named_parameters() if name not in found)
    if n_missing > MOST_MISSING:
        raise WeightsError(
            f"the config asks for {n_missing:,} weights that {source} does not hold: "
            "config.json and weights do not belong together"
        )
    aliases = tied_names(model)
    there = {aliases.get(name, name) for name in found}
    missing = sorted(name for name in own if aliases.get(name, name) not in there)
    return found, LoadReport(missing, sorted(found.keys() - own.keys()))


def load_into(model: nn.Module, found: Mapping[str, Tensor], *, source: str) -> None:
    """Copy weights, as ``fitted`` gives them, into the model, whose type they take.

    Raises:
        WeightsError: two that are tied in the model and not in the checkpoint; both are named.
    """
    own, weights = model.state_dict(), dict(found)
    for alias, name in tied_names(model).items():
        if alias in found and name in found and not _become_equal(found[alias], found[name], own[name].dtype):
            raise WeightsError(
                f"{alias} and {name} of {source} differ, but the config ties them: "
                "set tie_word_embeddings to false in config.json"
            )
        if alias in found:
            weights.setdefault(name, found[alias])
    model.load_state_dict({name: weights[name] for name in own.keys() & weights.keys()}, strict=False)


def without_mismatched(
    model: nn.Module, weights: Mapping[str, Tensor], *, base_prefix: str
) -> tuple[dict[str, Tensor], list[str]]:
    """The weights without those of another shape than the model's, and the names and shapes of these."""
    own = model.state_dict()
    found = _with_prefix_of(own, weights, base_prefix)
    mismatched = {
        name: f"{name} {tuple(found[name].shape)} in place of {tuple(own[name].shape)}"
        for name in sorted(own.keys() & found.keys())
        if own[name].shape != found[name].shape
    }
    return {name: tensor for name, tensor in found.items() if name not in mismatched}, list(mismatched.values())


def tied_names(model: nn.Module) -> dict[str, str]:
    """Every further name of a parameter that has several -> its first."""
    first: dict[int, str] = {}
    return {
        name: first[id(parameter)]
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if first.setdefault(id(parameter), name) != name
    }


def _become_equal(one: Tensor, other: Tensor, dtype: torch.dtype) -> bool:
    return torch.equal(one.to(dtype), other.to(dtype))


def _with_prefix_of(own: Mapping[str, Tensor], weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    if any(name.startswith(prefix) for name in own):  # a task model, whose head has no prefix
        return {prefix + name if prefix + name in own else name: tensor for name, tensor in weights.items()}
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items()}
