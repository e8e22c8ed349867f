"""A tiny random model of every model type in the registry, and its experts as functions."""

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from zoo_configs import ARCHITECTURES, EXPERTS, HIDDEN, VISION, common, extras

TOKENS = 5


def tiny_config(model_type: str, p: int) -> Any:
    """A config with 3 layers, 3 experts a layer, d = 16 and expert size `p`."""
    config = CONFIG_MAPPING[model_type]
    if model_type == "dbrx":
        ffn = {"moe_num_experts": EXPERTS, "moe_top_k": 2, "ffn_hidden_size": p,
               "hidden_size": HIDDEN}  # fmt: skip
        return config(d_model=HIDDEN, n_heads=2, n_layers=2, vocab_size=32, max_seq_len=32,
                      ffn_config=ffn, attn_config={"kv_n_heads": 1, "rope_theta": 1e4})  # fmt: skip
    fields = common(p) | extras(model_type, p)
    if "text_config" in (config.sub_configs or {}):
        return config(text_config=fields, vision_config=dict(VISION))
    return config(**fields)


def model_class(model_type: str) -> Any:
    """The class of the tiny model."""
    module, _, name = ARCHITECTURES[model_type].rpartition(".")
    if not module:
        return getattr(transformers, name)
    return getattr(importlib.import_module(f"transformers.models.{module}.modeling_{module}"), name)


@lru_cache(maxsize=2)
def tiny_model(model_type: str, p: int, dtype: torch.dtype) -> nn.Module:
    """The model with normal weights, biases of experts zero, rounded to `dtype`."""
    torch.manual_seed(0)
    model = model_class(model_type)(tiny_config(model_type, p))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            zero = name.endswith(("gate_up_proj_bias", "down_proj_bias"))
            parameter.zero_() if zero else parameter.normal_(std=0.3)
    return model.to(dtype).eval()


@dataclass(frozen=True)
class MemoryExpert:
    """One routed expert in memory: `run` maps (T, d) to (T, d) in float32.

    `gated` maps gate and up, both (T, p), to what down multiplies; without a gate, up alone.
    """

    layer: int
    expert: int
    section: str
    run: Callable[[Tensor], Tensor]
    gated: Callable[..., Tensor]


def layer_of(name: str) -> int:
    """The number of the layer in a module's name."""
    return next(int(part) for part in name.split(".") if part.isdigit())


def memory_experts(model: nn.Module) -> Iterator[MemoryExpert]:
    """All routed experts, run through the library's own modules."""
    for name, module in model.named_modules():
        kind = type(module).__name__
        if kind == "JetMoeMoE":
            runs = [_jetmoe(module, e) for e in range(EXPERTS)]
        elif kind == "Llama4TextExperts":
            runs = [_batched(module, e) for e in range(EXPERTS)]
        elif name.endswith(".experts") and "attention" not in name:
            runs = [_routed(module, e) for e in range(EXPERTS)]
        else:
            continue
        section = "vision" if "vision_moe" in name else ""
        for expert, run in enumerate(runs):
            yield MemoryExpert(layer_of(name), expert, section, run, _gated(module))


def _gated(module: nn.Module) -> Callable[..., Tensor]:
    """The activation of the module's own experts, but for gpt-oss's interleaved one."""
    if type(module).__name__ == "GptOssExperts":
        return lambda gate, up: (
            (up.clamp(-7, 7) + 1) * gate.clamp(max=7) * torch.sigmoid(1.702 * gate.clamp(max=7))
        )
    act = getattr(module, "act_fn", torch.nn.functional.silu)
    if type(module).__name__ == "NemotronHExperts":
        return act  # type: ignore[no-any-return]
    if hasattr(module, "_apply_gate"):
        return lambda *halves: module._apply_gate(torch.cat(halves, -1))
    return lambda gate, up: act(gate) * up


def _routed(module: nn.Module, expert: int) -> Callable[[Tensor], Tensor]:
    if hasattr(module, "post_expert_norm"):
        module.post_expert_norm = nn.Identity()

    def run(x: Tensor) -> Tensor:
        chosen = torch.tensor([[expert, (expert + 1) % EXPERTS]]).repeat(len(x), 1)
        weights = torch.tensor([[1.0, 0.0]]).repeat(len(x), 1)
        out: Tensor = module.float()(x, chosen, weights)
        return out.reshape(x.shape)

    return run


def _batched(module: nn.Module, expert: int) -> Callable[[Tensor], Tensor]:
    def run(x: Tensor) -> Tensor:
        out: Tensor = module.float()(x.repeat(EXPERTS, 1))
        return out.view(EXPERTS, *x.shape)[expert]

    return run


def _jetmoe(module: nn.Module, expert: int) -> Callable[[Tensor], Tensor]:
    def run(x: Tensor) -> Tensor:
        sizes = [len(x) if e == expert else 0 for e in range(EXPERTS)]
        gate, up = module.float().input_linear(x, sizes).chunk(2, dim=-1)
        out: Tensor = module.output_linear(module.activation(gate) * up, sizes)
        return out

    return run


def shared_experts(model: nn.Module) -> dict[int, Callable[[Tensor], Tensor]]:
    """The shared expert of every layer that has one; several side by side are one."""
    names = ("shared_expert", "shared_experts", "shared_mlp")
    return {
        layer_of(name): _shared(module)
        for name, module in model.named_modules()
        if name.rsplit(".", 1)[-1] in names and any(True for _ in module.parameters())
    }


def _shared(module: nn.Module) -> Callable[[Tensor], Tensor]:
    count = getattr(module, "n_shared_experts", None)
    if count is None:
        return module.float().forward
    return lambda x: module.float()(x, torch.ones(len(x), count))
