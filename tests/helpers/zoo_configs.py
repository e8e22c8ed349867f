"""The class of every model type in the registry, and what its config needs to be tiny.

A class is one of transformers' own, or "module.Class" for one that it does not export. `EXTRAS` has
what a type needs beyond `COMMON` to be tiny and to have dense and shared parts; "P" and "S" in it
are the expert size p and 2 p.
"""

from typing import Any

EXPERTS = 3
HIDDEN = 16

MLA = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4,
       "v_head_dim": 4, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1}  # fmt: skip
LINEAR = {"linear_num_value_heads": 2, "linear_num_key_heads": 2, "linear_key_head_dim": 4,
          "linear_value_head_dim": 4, "linear_head_dim": 4, "linear_num_heads": 2}  # fmt: skip
MAMBA = {"mamba_n_heads": 4, "mamba_d_state": 4, "mamba_chunk_size": 4}
INDEXER = {"index_n_heads": 2, "index_head_dim": 8, "index_topk": 4}
SPARSE = {"mlp_layer_types": ["dense", "sparse", "sparse"]}
SHARED = {"shared_expert_intermediate_size": "S"}
WINDOW = {"d_rel": 4, "rel_extent": 4, "swa_num_attention_heads": 2, "swa_num_key_value_heads": 2,
          "swa_head_dim": 8, "unpadded_vocab_size": 32}  # fmt: skip
LLAMA4 = {"intermediate_size_mlp": 24, "interleave_moe_layer_step": 2}
VISION = {"num_hidden_layers": 1, "depth": 1, "hidden_size": 16, "intermediate_size": 16,
          "num_attention_heads": 2, "num_heads": 2, "vision_output_dim": 16, "image_size": 28,
          "out_hidden_size": 16, "num_position_embeddings": 4, "projector_input_dim": 16,
          "projector_output_dim": 16, "deepstack_visual_indexes": [0]}  # fmt: skip

ARCHITECTURES = {
    "qwen2_moe": "Qwen2MoeForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "qwen3_next": "Qwen3NextForCausalLM",
    "qwen3_5_moe_text": "Qwen3_5MoeForCausalLM",
    "qwen3_5_moe": "Qwen3_5MoeForConditionalGeneration",
    "qwen4_exp_text": "Qwen4ExpForCausalLM",
    "flint": "FlintForCausalLM",
    "laguna": "LagunaForCausalLM",
    "qwen3_vl_moe": "Qwen3VLMoeForConditionalGeneration",
    "qwen3_omni_moe_text": "qwen3_omni_moe.Qwen3OmniMoeThinkerTextModel",
    "qwen3_omni_moe_talker_text": "qwen3_omni_moe.Qwen3OmniMoeTalkerModel",
    "olmoe": "OlmoeForCausalLM",
    "flex_olmo": "FlexOlmoForCausalLM",
    "cohere2_moe": "Cohere2MoeForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "minimax": "MiniMaxForCausalLM",
    "minimax_m2": "MiniMaxM2ForCausalLM",
    "phimoe": "PhimoeForCausalLM",
    "minimax_m3_vl_text": "minimax_m3_vl.MiniMaxM3VLForCausalLM",
    "kimi_linear": "KimiLinearForCausalLM",
    "deepseek_v2": "DeepseekV2ForCausalLM",
    "deepseek_v3": "DeepseekV3ForCausalLM",
    "deepseek_v32": "DeepseekV32ForCausalLM",
    "deepseek_v4": "DeepseekV4ForCausalLM",
    "deepseek_ocr2_text": "deepseek_ocr2.DeepseekOcr2TextModel",
    "unlimited_ocr_text": "unlimited_ocr.UnlimitedOcrTextModel",
    "axk1": "AXK1ForCausalLM",
    "axk2": "AXK2ForCausalLM",
    "glm4_moe": "Glm4MoeForCausalLM",
    "glm4_moe_lite": "Glm4MoeLiteForCausalLM",
    "glm4v_moe_text": "glm4v_moe.Glm4vMoeTextModel",
    "glm_moe_dsa": "GlmMoeDsaForCausalLM",
    "glm5_next_text": "glm5_next.Glm5NextTextModel",
    "solar_open": "SolarOpenForCausalLM",
    "dots1": "Dots1ForCausalLM",
    "dots3_note_text": "dots3_note.Dots3NoteForCausalLM",
    "mistral4": "mistral4.Mistral4Model",
    "mistral_large4_text": "mistral_large4.MistralLarge4TextModel",
    "mimo_v2_flash": "MiMoV2FlashForCausalLM",
    "longcat_flash": "LongcatFlashForCausalLM",
    "bailing_hybrid": "BailingHybridForCausalLM",
    "afmoe": "AfmoeForCausalLM",
    "exaone_moe": "ExaoneMoeForCausalLM",
    "hy_v3": "HYV3ForCausalLM",
    "hy_v4": "HYV4ForCausalLM",
    "kolibri1": "Kolibri1ForCausalLM",
    "ernie4_5_moe": "Ernie4_5_MoeForCausalLM",
    "ernie4_5_vl_moe_text": "ernie4_5_vl_moe.Ernie4_5_VLMoeTextModel",
    "hunyuan_v1_moe": "HunYuanMoEV1ForCausalLM",
    "beam": "BeamForCausalLM",
    "mellum": "MellumForCausalLM",
    "zaya": "ZayaForCausalLM",
    "muse_spark_text": "muse_spark.MuseSparkTextModel",
    "jamba": "JambaForCausalLM",
    "lfm2_moe": "Lfm2MoeForCausalLM",
    "granitemoe": "GraniteMoeForCausalLM",
    "granitemoeshared": "GraniteMoeSharedForCausalLM",
    "granitemoehybrid": "GraniteMoeHybridForCausalLM",
    "granitemoe_swa": "GraniteMoeSWAForCausalLM",
    "jetmoe": "JetMoeForCausalLM",
    "gpt_oss": "GptOssForCausalLM",
    "openai_privacy_filter": "openai_privacy_filter.OpenAIPrivacyFilterModel",
    "llama4_text": "Llama4ForCausalLM",
    "llama4": "Llama4ForConditionalGeneration",
    "gemma4_text": "Gemma4ForCausalLM",
    "diffusion_gemma_text": "diffusion_gemma.DiffusionGemmaEncoderTextModel",
    "nemotron_h": "NemotronHForCausalLM",
    "step3p5": "step3p7.Step3p7TextModel",
    "inkling_text": "InklingForCausalLM",
    "inkling2_text": "Inkling2ForCausalLM",
    "aria_text": "AriaTextForCausalLM",
    "dbrx": "DbrxForCausalLM",
}

SAME_AS = {
    "kimi_k2": "deepseek_v3",
    "qwen3_vl_moe_text": "qwen3_vl_moe",
    "qwen3_omni_moe": "qwen3_omni_moe_text",
    "qwen3_omni_moe_thinker": "qwen3_omni_moe_text",
    "qwen3_omni_moe_talker": "qwen3_omni_moe_text",
    "qwen4_exp": "qwen4_exp_text",
    "minimax_m3_vl": "minimax_m3_vl_text",
    "deepseek_ocr2": "deepseek_ocr2_text",
    "unlimited_ocr": "unlimited_ocr_text",
    "glm4v_moe": "glm4v_moe_text",
    "glm5_next": "glm5_next_text",
    "dots3_note": "dots3_note_text",
    "mistral_large4": "mistral_large4_text",
    "ernie4_5_vl_moe": "ernie4_5_vl_moe_text",
    "muse_spark": "muse_spark_text",
    "gemma4": "gemma4_text",
    "diffusion_gemma": "diffusion_gemma_text",
    "step3p7": "step3p5",
    "inkling_mm_model": "inkling_text",
    "inkling2": "inkling2_text",
    "aria": "aria_text",
}
"""Types whose experts are those of another: the outer type of a model with several parts."""

IN_MEMORY = {"gpt_oss": "E", "nemotron_h": "G"} | dict.fromkeys(
    ("llama4", "llama4_text", "aria_text", "openai_privacy_filter"), "D"
)
"""The kind of layout that the library keeps a type's experts in; C for all others."""

NOT_FUSED = ("dbrx",)
"""Types that the library keeps in one flat matrix."""

EXTRAS: dict[str, dict[str, Any]] = {
    "qwen2_moe": SHARED | {"mlp_only_layers": [0]},
    "qwen3_moe": {"mlp_only_layers": [1]},
    "qwen3_next": LINEAR | SHARED,
    "qwen3_5_moe_text": LINEAR | SHARED,
    "qwen3_5_moe": LINEAR | SHARED,
    "qwen4_exp_text": LINEAR | SHARED | {"hc_lowrank": 4, "hc_count": 2,
        "ngram_vocab_size_base": 32, "split_ngram_parts": 1},
    "qwen3_omni_moe_talker_text": SHARED,
    "flint": SHARED,
    "laguna": SHARED,
    "kolibri1": SHARED,
    "cohere2_moe": {"num_shared_experts": 2},
    "minimax_m3_vl_text": INDEXER | {"shared_intermediate_size": "S",
        "dense_intermediate_size": 24},
    "kimi_linear": MLA | LINEAR,
    "deepseek_v2": MLA | {"n_shared_experts": 2},
    "deepseek_v3": MLA,
    "deepseek_v32": MLA | INDEXER,
    "deepseek_v4": MLA | INDEXER | {"num_key_value_heads": 1, "o_groups": 2, "o_lora_rank": 4,
        "sliding_window": 4},
    "deepseek_ocr2_text": MLA | SPARSE,
    "unlimited_ocr_text": MLA | SPARSE,
    "axk1": MLA,
    "axk2": MLA | INDEXER,
    "glm4_moe": MLA,
    "glm4_moe_lite": MLA,
    "glm4v_moe_text": MLA,
    "glm_moe_dsa": MLA | INDEXER,
    "glm5_next_text": MLA | INDEXER | LINEAR | SPARSE | {"qk_rope_head_dim": 0, "index_kpool": 2,
        "hc_mult": 2},
    "solar_open": MLA,
    "dots1": MLA | {"n_shared_experts": 2},
    "dots3_note_text": MLA | INDEXER | SPARSE | {"shared_experts_intermediate_size": "S",
        "layer_types": ["full_attention"] * 3},
    "mistral4": MLA,
    "mistral_large4_text": MLA | INDEXER | SPARSE,
    "mimo_v2_flash": MLA,
    "longcat_flash": MLA | {"num_layers": 2, "expert_ffn_hidden_size": "P", "zero_expert_num": 2,
        "ffn_hidden_size": 24},
    "bailing_hybrid": MLA,
    "lfm2_moe": {"num_dense_layers": 1, "layer_types": ["conv", "full_attention", "conv"]},
    "afmoe": {"num_dense_layers": 1},
    "exaone_moe": {"first_k_dense_replace": 1},
    "hy_v4": MLA | INDEXER | SPARSE,
    "ernie4_5_vl_moe_text": {"moe_intermediate_size": ["P", "H"],
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}},
    "beam": SPARSE | {"n_group": 1, "topk_group": 1},
    "zaya": {"num_experts_per_tok": 1, "router_hidden_size": 8},
    "muse_spark_text": SPARSE | {"moe_hidden_size": HIDDEN},
    "granitemoeshared": {"shared_intermediate_size": "S"},
    "granitemoehybrid": MAMBA | {"shared_intermediate_size": "S"},
    "llama4": LLAMA4,
    "llama4_text": LLAMA4,
    "gemma4_text": {"enable_moe_block": True, "top_k_experts": 2, "hidden_size_per_layer_input": 4,
        "vocab_size_per_layer_input": 32, "global_head_dim": 8},
    "diffusion_gemma_text": {"top_k_experts": 2},
    "nemotron_h": {"moe_shared_expert_intermediate_size": "S", "mamba_num_heads": 4,
        "mamba_head_dim": 4, "ssm_state_size": 4, "n_groups": 1,
        "layers_block_type": ["mamba", "moe", "attention", "moe"]},
    "step3p5": SPARSE | {"share_expert_dim": "S"},
    "inkling_text": WINDOW,
    "inkling2_text": WINDOW,
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 4,
              "mamba_dt_rank": 4, "expert_layer_period": 2, "expert_layer_offset": 1},
}  # fmt: skip


def common(p: int) -> dict[str, Any]:
    """Fields that most configs know, for experts of size `p`."""
    counts = dict.fromkeys(
        ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), EXPERTS
    )
    return counts | {
        "hidden_size": HIDDEN, "intermediate_size": p, "moe_intermediate_size": p,
        "num_hidden_layers": 3, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8,
        "vocab_size": 32, "num_experts_per_tok": 2, "moe_k": 2, "max_position_embeddings": 32,
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip


def extras(model_type: str, p: int) -> dict[str, Any]:
    """What `model_type` needs beyond them."""
    sizes = {"P": p, "S": 2 * p, "H": p // 2}

    def number(value: Any) -> Any:
        if isinstance(value, list):
            return [number(one) for one in value]
        return sizes.get(value, value) if isinstance(value, str) else value

    return {name: number(value) for name, value in EXTRAS.get(model_type, {}).items()}
