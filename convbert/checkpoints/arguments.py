"""Arguments that scripts give Transformers' ``from_pretrained`` in, those that are settings of ours out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convbert.checkpoints.location import CACHE_VARIABLE
from convbert.errors import InputError

_WITHOUT_EFFECT = {
    "use_fast",  # there is one tokenizer: docs/decisions/0004-one-tokenizer-class.md
    "from_slow",
    "trust_remote_code",  # no code of a checkpoint is run
    "weights_only",
    "use_safetensors",  # they are read where they are, and pickles without running code
    "force_download",  # what changes at its source is copied anew
    "resume_download",
    "low_cpu_mem_usage",
    "finetuning_task",  # a name that 4's scripts give the config
    "mirror",
    "return_dict",  # outputs answer to names and places
}
"""What asks for nothing, or for what is so anyway."""
_REMEDIES = {
    "local_files_only": "give the folder's path in place of a URL",
    "cache_dir": f"set {CACHE_VARIABLE}",
    "token": "give it to the store's client, such as HF_TOKEN for hf://",
    "use_auth_token": "give it to the store's client, such as HF_TOKEN for hf://",
    "proxies": "set HTTPS_PROXY",
    "revision": "give it in the address, such as hf://owner/name@revision",
    "subfolder": "give it in the address",
    "variant": "give a folder that holds the weights under their usual names",
    "device_map": "move the model with to(device)",
    "attn_implementation": "leave it out: there is one",
    "state_dict": "call load_state_dict on the model",
    "output_loading_info": "call load, which returns the model and a report",
    "from_tf": "leave it out: TensorFlow's files are known by their names",
    "from_flax": "save the weights in a form of PyTorch or TensorFlow",
    "key_mapping": "rename the weights in their files",
    "tp_plan": "leave it out: a model lies on one device",
    "return_unused_kwargs": "leave it out: what no argument takes is an error",
    "output_attentions": "give it to the model's call",
    "output_hidden_states": "give it to the model's call",
}
"""What is done in another way here."""
_SAVING: dict[str, tuple[str, Any]] = {
    "safe_serialization": ("leave it out: safetensors are written", True),
    "max_shard_size": ("give max_shard_bytes, a number of bytes", None),
    "push_to_hub": ("copy the folder with the hub's own tools", False),
    "state_dict": ("call load_state_dict on the model first", None),
    "legacy_format": ("leave it out: tokenizer.json is written", False),
    "filename_prefix": ("leave it out: save_vocabulary takes one", None),
}
"""What save_pretrained takes there: what to do here, and the value that changes nothing."""
_SAVING_WITHOUT_EFFECT = {"save_function"}  # safetensors writes
_USUAL = {"revision": "main", "attn_implementation": "eager"}


def own_settings(arguments: Mapping[str, Any], folder_or_url: object) -> dict[str, Any]:
    """The arguments without Transformers' own, those that have no effect here.

    Raises:
        InputError: one that asks for what is done in another way here.
    """
    for name, remedy in _REMEDIES.items():
        value = arguments.get(name)
        is_asked = value is not False and value not in (None, "", {}, _USUAL.get(name))  # 0 is a device
        if is_asked and (name != "local_files_only" or _is_url(folder_or_url)):
            raise InputError(f"{name} is an argument of Transformers: {remedy}")
    return {name: value for name, value in arguments.items() if name not in _REMEDIES.keys() | _WITHOUT_EFFECT}


def check_saving(arguments: Mapping[str, Any]) -> None:
    """See that arguments for ``save_pretrained`` in Transformers ask for what is done here anyway.

    Raises:
        InputError: one that asks for what is done in another way here.
    """
    for name, value in arguments.items():
        if name in _SAVING_WITHOUT_EFFECT:
            continue
        if name not in _SAVING:
            raise TypeError(f"save_pretrained has no argument {name!r}: check its name")
        remedy, usual = _SAVING[name]
        if value is not None and value is not usual:
            raise InputError(f"{name} ({value!r:.80}) is an argument of Transformers: {remedy}")


def _is_url(folder_or_url: object) -> bool:
    return isinstance(folder_or_url, (str, Path)) and "://" in str(folder_or_url)
