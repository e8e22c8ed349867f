"""Where each model type keeps its experts: adding a type is one entry of `MODEL_TYPES`.

Every entry is checked against the library that writes such files (docs/layouts.md).
"""

from globe_stream.checkpoint.layouts import ModelType, text_configs
from globe_stream.io.records import JsonObject

_QWEN = ModelType("AC", shared="mlp.shared_expert")
_ROUTED = "n_routed_experts"
_DEEPSEEK = ModelType("AC", shared="mlp.shared_experts", count=_ROUTED)
_SHARED = ModelType("AC", shared="mlp.shared_experts")
_OLMO = ModelType("AC", size="intermediate_size")
_LOCAL = ModelType("AC", count="num_local_experts|num_experts")
_MIXTRAL = ModelType(
    "BC", "block_sparse_moe.experts", count="num_local_experts", size="intermediate_size"
)
_GRANITE = ModelType(
    "C",
    "block_sparse_moe|block_sparse_moe.experts",
    "shared_mlp",
    count="num_local_experts",
    size="intermediate_size",
)
_LLAMA4 = ModelType(
    "D",
    "feed_forward.experts",
    "feed_forward.shared_expert",
    count="num_local_experts",
    size="intermediate_size",
)
_GEMMA = ModelType("C", "experts")
_QWEN_VL = ModelType("ACD", count="num_experts|num_local_experts")
_OMNI = ModelType(
    "AC",
    shared="mlp.shared_expert",
    count="num_experts|num_local_experts",
    sections=(("talker", "talker_config.text_config"),),
)
_ERNIE_VL = ModelType(
    "AC",
    "mlp.experts|mlp.text_moe.experts|mlp.vision_moe.experts",
    "mlp.shared_experts",
    count="moe_num_experts",
    sections=(("vision", ""),),
    split=True,
)
_STEP = ModelType("CG", "moe|mlp.experts", "share_expert|mlp.shared_experts", count=_ROUTED)
_MISTRAL_LARGE = ModelType(
    "BC", "experts|mlp.experts", "shared_experts|mlp.shared_experts", count=_ROUTED
)
_ARIA = ModelType(
    "D",
    shared="mlp.shared_experts",
    count="moe_num_experts",
    size="intermediate_size",
)
_INKLING = ModelType("CH", shared="mlp.shared_experts", count=_ROUTED)
_MINIMAX_M3 = ModelType(
    "BC",
    "block_sparse_moe.experts|mlp.experts",
    "block_sparse_moe.shared_experts|mlp.shared_experts",
    count="num_local_experts",
    size="intermediate_size",
)
_MUSE = ModelType("C", count="num_local_experts")
_DOTS3 = ModelType(
    "AC", shared="mlp.shared_experts", count=_ROUTED, sections=(("vision", "vision_config"),)
)

MODEL_TYPES: dict[str, ModelType] = {
    "qwen2_moe": _QWEN,
    "qwen3_moe": ModelType("AC", count="num_local_experts|num_experts"),
    "qwen3_next": _QWEN,
    "qwen3_5_moe": _QWEN,
    "qwen3_5_moe_text": _QWEN,
    "qwen4_exp": _QWEN,
    "qwen4_exp_text": _QWEN,
    "flint": _QWEN,
    "laguna": ModelType("AC", shared="mlp.shared_expert|mlp.shared_experts"),
    "qwen3_vl_moe": _QWEN_VL,
    "qwen3_vl_moe_text": _QWEN_VL,
    "qwen3_omni_moe": _OMNI,
    "qwen3_omni_moe_thinker": _OMNI,
    "qwen3_omni_moe_talker": _OMNI,
    "qwen3_omni_moe_text": _OMNI,
    "qwen3_omni_moe_talker_text": _OMNI,
    "olmoe": _OLMO,
    "flex_olmo": _OLMO,
    "cohere2_moe": ModelType("AC", shared="mlp.shared_experts", size="intermediate_size"),
    "mixtral": _MIXTRAL,
    "minimax": _MIXTRAL,
    "minimax_m2": _MIXTRAL,
    "phimoe": _MIXTRAL,
    "minimax_m3_vl": _MINIMAX_M3,
    "minimax_m3_vl_text": _MINIMAX_M3,
    "kimi_linear": ModelType(
        "BC",
        "block_sparse_moe.experts|mlp.experts",
        "block_sparse_moe.shared_experts|mlp.shared_experts",
    ),
    "deepseek_v2": _DEEPSEEK,
    "deepseek_v3": _DEEPSEEK,
    "deepseek_v32": _DEEPSEEK,
    "deepseek_v4": ModelType(
        "BC", "ffn.experts|mlp.experts", "ffn.shared_experts|mlp.shared_experts", count=_ROUTED
    ),
    "deepseek_ocr2": _DEEPSEEK,
    "deepseek_ocr2_text": _DEEPSEEK,
    "unlimited_ocr": _DEEPSEEK,
    "unlimited_ocr_text": _DEEPSEEK,
    "kimi_k2": _DEEPSEEK,
    "axk1": _DEEPSEEK,
    "axk2": _DEEPSEEK,
    "glm4_moe": _DEEPSEEK,
    "glm4_moe_lite": _DEEPSEEK,
    "glm4v_moe": _DEEPSEEK,
    "glm4v_moe_text": _DEEPSEEK,
    "glm_moe_dsa": _DEEPSEEK,
    "glm5_next": _DEEPSEEK,
    "glm5_next_text": _DEEPSEEK,
    "solar_open": _DEEPSEEK,
    "dots1": _DEEPSEEK,
    "dots3_note": _DOTS3,
    "dots3_note_text": _DOTS3,
    "mistral4": _DEEPSEEK,
    "mistral_large4": _MISTRAL_LARGE,
    "mistral_large4_text": _MISTRAL_LARGE,
    "mimo_v2_flash": ModelType("AC", count=_ROUTED),
    "longcat_flash": ModelType(
        "AC",
        count=_ROUTED,
        size="expert_ffn_hidden_size|moe_intermediate_size",
        padding="zero_expert_num",
    ),
    "bailing_hybrid": _SHARED,
    "afmoe": _SHARED,
    "exaone_moe": _SHARED,
    "hy_v3": ModelType("AC", shared="mlp.shared_mlp|mlp.shared_experts"),
    "hy_v4": _DEEPSEEK,
    "kolibri1": ModelType("AC", shared="mlp.shared_experts", count="num_local_experts"),
    "ernie4_5_moe": ModelType("AC", shared="mlp.shared_experts", count="moe_num_experts"),
    "ernie4_5_vl_moe": _ERNIE_VL,
    "ernie4_5_vl_moe_text": _ERNIE_VL,
    "hunyuan_v1_moe": ModelType("AC", shared="mlp.shared_mlp", size="intermediate_size"),
    "beam": _SHARED,
    "mellum": _LOCAL,
    "zaya": ModelType("AC"),
    "muse_spark": _MUSE,
    "muse_spark_text": _MUSE,
    "jamba": ModelType("AC", "feed_forward.experts", size="intermediate_size"),
    "lfm2_moe": ModelType("BC", "feed_forward.experts"),
    "granitemoe": _GRANITE,
    "granitemoeshared": _GRANITE,
    "granitemoehybrid": _GRANITE,
    "granitemoe_swa": _GRANITE,
    "jetmoe": ModelType("C", "mlp", count="num_local_experts", size="intermediate_size"),
    "gpt_oss": ModelType("E", count="num_local_experts", size="intermediate_size"),
    "openai_privacy_filter": ModelType("D", count="num_local_experts", size="intermediate_size"),
    "llama4": _LLAMA4,
    "llama4_text": _LLAMA4,
    "gemma4": _GEMMA,
    "gemma4_text": _GEMMA,
    "diffusion_gemma": _GEMMA,
    "diffusion_gemma_text": _GEMMA,
    "nemotron_h": ModelType(
        "AG", "mixer.experts", "mixer.shared_experts", count=_ROUTED, gated=False
    ),
    "step3p5": _STEP,
    "step3p7": _STEP,
    "inkling_text": _INKLING,
    "inkling_mm_model": _INKLING,
    "inkling2": _INKLING,
    "inkling2_text": _INKLING,
    "aria": _ARIA,
    "aria_text": _ARIA,
    "dbrx": ModelType(
        "F",
        "ffn.experts.mlp",
        count="ffn_config.moe_num_experts",
        size="ffn_config.ffn_hidden_size",
    ),
}

REFUSED = {
    "doge": "an expert is one row of two embeddings, no matrix",
    "nllb-moe": "encoder-decoder with ungated fc1 and fc2, each with a bias",
    "switch_transformers": "encoder-decoder with ungated wi and wo, in encoder and decoder alike",
    "vitpose_backbone": "an expert is part of a dense layer, chosen by the data set",
    "nemo_speechlm": "stacks without a gate, transposed, inside a speech model",
}
"""Model types with experts that cannot be read, and why."""


def model_type_of(config: JsonObject) -> str:
    """The config's model type, or that of its text part if only that is registered."""
    names = [str(part.get("model_type", "unknown")) for part in text_configs(config)]
    return next((name for name in names if name in MODEL_TYPES), names[0])
