"""A tiny random model of every model type in the registry, and its experts as functions.

`EXTRAS` has what a type needs beyond `COMMON` to be tiny and to have dense and shared parts.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

EXPERTS = 3
HIDDEN = 16
TOKENS = 5

_MLA = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4,
        "v_head_dim": 4, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1}  # fmt: skip
_LINEAR = {"linear_num_value_heads": 2, "linear_num_key_heads": 2, "linear_key_head_dim": 4,
           "linear_value_head_dim": 4}  # fmt: skip
_MAMBA = {"mamba_n_heads": 4, "mamba_d_state": 4, "mamba_chunk_size": 4}
_VISION = {"num_hidden_layers": 1, "depth": 1, "hidden_size": 16, "intermediate_size": 16,
           "num_attention_heads": 2, "num_heads": 2, "vision_output_dim": 16, "image_size": 28,
           "out_hidden_size": 16, "num_position_embeddings": 4, "projector_input_dim": 16,
           "projector_output_dim": 16, "deepstack_visual_indexes": [0]}  # fmt: skip

ARCHITECTURES = {
    "qwen2_moe": "Qwen2MoeForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "qwen3_next": "Qwen3NextForCausalLM",
    "qwen3_5_moe_text": "Qwen3_5MoeForCausalLM",
    "qwen3_5_moe": "Qwen3_5MoeForConditionalGeneration",
    "qwen3_vl_moe": "Qwen3VLMoeForConditionalGeneration",
    "olmoe": "OlmoeForCausalLM",
    "flex_olmo": "FlexOlmoForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "minimax": "MiniMaxForCausalLM",
    "minimax_m2": "MiniMaxM2ForCausalLM",
    "phimoe": "PhimoeForCausalLM",
    "deepseek_v2": "DeepseekV2ForCausalLM",
    "deepseek_v3": "DeepseekV3ForCausalLM",
    "glm4_moe": "Glm4MoeForCausalLM",
    "dots1": "Dots1ForCausalLM",
    "bailing_hybrid": "BailingHybridForCausalLM",
    "afmoe": "AfmoeForCausalLM",
    "ernie4_5_moe": "Ernie4_5_MoeForCausalLM",
    "hunyuan_v1_moe": "HunYuanMoEV1ForCausalLM",
    "jamba": "JambaForCausalLM",
    "lfm2_moe": "Lfm2MoeForCausalLM",
    "granitemoe": "GraniteMoeForCausalLM",
    "granitemoeshared": "GraniteMoeSharedForCausalLM",
    "granitemoehybrid": "GraniteMoeHybridForCausalLM",
    "jetmoe": "JetMoeForCausalLM",
    "gpt_oss": "GptOssForCausalLM",
    "llama4_text": "Llama4ForCausalLM",
    "llama4": "Llama4ForConditionalGeneration",
    "dbrx": "DbrxForCausalLM",
}


def _extras(model_type: str, p: int) -> dict[str, Any]:
    llama = {"intermediate_size_mlp": 24, "interleave_moe_layer_step": 2}
    granite = {"shared_intermediate_size": 2 * p}
    return {
        "qwen2_moe": {"shared_expert_intermediate_size": 2 * p, "mlp_only_layers": [0]},
        "qwen3_moe": {"mlp_only_layers": [1]},
        "qwen3_next": _LINEAR | {"shared_expert_intermediate_size": 2 * p},
        "qwen3_5_moe_text": _LINEAR | {"shared_expert_intermediate_size": 2 * p},
        "qwen3_5_moe": _LINEAR | {"shared_expert_intermediate_size": 2 * p},
        "deepseek_v2": _MLA | {"n_shared_experts": 2},
        "deepseek_v3": _MLA,
        "glm4_moe": _MLA,
        "dots1": _MLA | {"n_shared_experts": 2},
        "bailing_hybrid": _MLA,
        "lfm2_moe": {"num_dense_layers": 1, "layer_types": ["conv", "full_attention", "conv"]},
        "afmoe": {"num_dense_layers": 1},
        "granitemoeshared": granite,
        "granitemoehybrid": granite | _MAMBA,
        "llama4": llama,
        "llama4_text": llama,
        "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 4,
                  "mamba_dt_rank": 4, "expert_layer_period": 2, "expert_layer_offset": 1},
    }.get(model_type, {})  # fmt: skip


def tiny_config(model_type: str, p: int) -> Any:
    """A config with 3 layers, 3 experts a layer, d = 16 and expert size `p`."""
    config = CONFIG_MAPPING[model_type]
    if model_type == "dbrx":
        ffn = {"moe_num_experts": EXPERTS, "moe_top_k": 2, "ffn_hidden_size": p,
               "hidden_size": HIDDEN}  # fmt: skip
        return config(d_model=HIDDEN, n_heads=2, n_layers=2, vocab_size=32, max_seq_len=32,
                      ffn_config=ffn, attn_config={"kv_n_heads": 1, "rope_theta": 1e4})  # fmt: skip
    counts = dict.fromkeys(
        ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), EXPERTS
    )
    common = counts | {
        "hidden_size": HIDDEN, "intermediate_size": p, "moe_intermediate_size": p,
        "num_hidden_layers": 3, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8,
        "vocab_size": 32, "num_experts_per_tok": 2, "moe_k": 2, "max_position_embeddings": 32,
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    } | _extras(model_type, p)  # fmt: skip
    if "text_config" in (config.sub_configs or {}):
        return config(text_config=common, vision_config=dict(_VISION))
    return config(**common)


@lru_cache(maxsize=2)
def tiny_model(model_type: str, p: int, dtype: torch.dtype) -> nn.Module:
    """The model with normal weights, biases of experts zero, rounded to `dtype`."""
    torch.manual_seed(0)
    model = getattr(transformers, ARCHITECTURES[model_type])(tiny_config(model_type, p))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            zero = name.endswith(("gate_up_proj_bias", "down_proj_bias"))
            parameter.zero_() if zero else parameter.normal_(std=0.3)
    return model.to(dtype).eval()


@dataclass(frozen=True)
class MemoryExpert:
    """One routed expert in memory: `run` maps (T, d) to (T, d) in float32."""

    layer: int
    expert: int
    run: Callable[[Tensor], Tensor]


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
        for expert, run in enumerate(runs):
            yield MemoryExpert(layer_of(name), expert, run)


def _routed(module: nn.Module, expert: int) -> Callable[[Tensor], Tensor]:
    def run(x: Tensor) -> Tensor:
        chosen = torch.full((len(x), 1), expert)
        out: Tensor = module.float()(x, chosen, torch.ones(len(x), 1))
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


def shared_modules(model: nn.Module) -> dict[int, nn.Module]:
    """The shared expert of every layer that has one."""
    names = ("shared_expert", "shared_experts", "shared_mlp")
    return {
        layer_of(name): module
        for name, module in model.named_modules()
        if name.rsplit(".", 1)[-1] in names and any(True for _ in module.parameters())
    }
