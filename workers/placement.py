"""Where a model's weights lie, and in how many bits: on one device, or spread over all that a worker has."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import torch
from transformers import BitsAndBytesConfig, PreTrainedModel

from workers.errors import ModelError
from workers.settings import ModelSettings


def placement(settings: ModelSettings) -> dict[str, Any]:
    """What transformers' ``from_pretrained`` is told about devices and quantization; nothing for a plain model.

    A plain model is loaded to the CPU and then moved, which needs none of the optional libraries.

    Raises:
        ModelError: the device cannot be used, or a library is missing.
    """
    if not settings.is_spread:
        require_device(settings.device)
    if settings.quantization:
        _require_installed("bitsandbytes", "quantized", f"model.quantization {settings.quantization}")
    elif not settings.is_spread:
        return {}
    _require_installed("accelerate", "large", f"model.device {settings.device}")
    arguments: dict[str, Any] = {"device_map": "balanced" if settings.is_spread else {"": settings.device}}
    if settings.max_memory:
        by_device = {int(name) if name.isdecimal() else name: size for name, size in settings.max_memory.items()}
        arguments["max_memory"] = by_device
    if settings.quantization:
        arguments["quantization_config"] = _quantization(settings)
    return arguments


def require_no_offload(model: PreTrainedModel, settings: ModelSettings) -> None:
    """Refuses a model that found no room: its weights would be fetched anew at every step, a hundred times slower.

    With ``model.max_memory`` that is what was asked for.

    Raises:
        ModelError: layers lie on the disk, or in the host's memory while there are accelerators.
    """
    places: Mapping[str, Any] = getattr(model, "hf_device_map", {})
    homes = {str(place) for place in places.values()}
    slow = {"disk"} if homes <= {"cpu", "disk"} else {"cpu", "disk"}
    outside = [name for name, place in places.items() if str(place) in slow]
    if outside and settings.max_memory is None:
        raise ModelError(
            f"model.device: there is no room for {settings.path_or_id!r} on the devices of this worker: "
            f"{len(outside)} of its {len(places)} parts, {outside[0]!r} the first of them, would be fetched at every "
            "step: give the worker more accelerators (cluster.accelerators_per_worker), set model.quantization, or "
            "say with model.max_memory what may lie where"
        )


def _quantization(settings: ModelSettings) -> BitsAndBytesConfig:
    # It says at every layer that 8-bit products are made in float16, and that a faster library could be fetched.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    if settings.quantization == "int4":
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=getattr(torch, settings.dtype),
        )
    # The outliers that a threshold would take out are those of the whole batch: a row would depend on its batch mates,
    # and a long prompt on how it is cut into chunks.
    return BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0)


def _require_installed(module: str, extra: str, what: str) -> None:
    if find_spec(module) is None:
        raise ModelError(f"{what} needs {module}, which is not installed: pip install 'namm-orchestrator[{extra}]'")


def require_device(name: str, setting: str = "model.device") -> None:
    """Makes sure that tensors can be put on a device.

    Raises:
        ModelError: they cannot; the message begins with the ``setting`` that names the device.
    """
    try:
        torch.zeros(1, device=torch.device(name)).item()  # fails on `meta` too, where a model would have no weights
    except (RuntimeError, AssertionError) as error:
        first_line = str(error).splitlines()[0]
        raise ModelError(f"{setting}: {name!r} cannot be used here ({first_line}): try 'cpu'") from error
