"""Names of dtypes: safetensors', torch's, those of options and of config.json; bytes of tensors."""

import torch
from torch import Tensor

ITEM_BYTES = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "F8_E8M0": 1,
    "U16": 2,
    "I16": 2,
    "F16": 2,
    "BF16": 2,
    "U32": 4,
    "I32": 4,
    "F32": 4,
    "U64": 8,
    "I64": 8,
    "F64": 8,
    "C64": 8,
}
"""Bytes of one element of every dtype that the safetensors format names."""

TORCH_DTYPES = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E8M0": torch.uint8,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I32": torch.int32,
}
"""Torch's name for every dtype an expert, or its scales, may be stored in; exponents are bytes."""

DTYPES = {"bf16": "BF16", "fp16": "F16", "fp32": "F32"}
"""Names of dtypes that may be asked for, and how safetensors spells them."""

CONFIG_NAMES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
"""How config.json spells them."""


def bytes_of(values: Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor, as bytes."""
    return values.detach().view(-1).view(torch.uint8).numpy().data
