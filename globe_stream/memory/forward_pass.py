"""What one forward pass over windows of tokens holds besides the model's weights."""

from dataclasses import dataclass
from typing import Any

LOSS_POSITIONS = 1024
"""Positions whose losses are computed at a time."""
_STREAMS = 8
"""Hidden states (n, d) alive at once: residual, normalized, queries, keys, values, outputs."""
_MASKS = 3
"""Boolean masks (n, n) alive at once while the causal mask is made."""


@dataclass(frozen=True)
class ForwardPass:
    """Sizes of a causal language model that decide what its forward pass holds.

    `width` is the most elements for one token inside a block besides its hidden states: gate, up
    and down of its experts, or of a dense block. `eager` attention forms its scores (heads, n, n).
    """

    vocabulary: int
    hidden: int
    width: int
    heads: int
    itemsize: int
    eager: bool

    @classmethod
    def of(cls, model: Any) -> "ForwardPass":
        """The sizes of a transformers model, with or without weights."""
        config = model.config.get_text_config()
        hidden = int(getattr(config, "hidden_size", 0))
        return cls(
            vocabulary=int(config.vocab_size),
            hidden=hidden,
            width=_width(config, hidden),
            heads=int(getattr(config, "num_attention_heads", None) or 1),
            itemsize=model.dtype.itemsize,
            eager=getattr(config, "_attn_implementation", "eager") == "eager",
        )

    def bytes(self, batch: int, length: int) -> int:
        """Peak bytes of `batch` windows of `length` tokens.

        Hidden states and the widest block of every token, the attention's masks and, if it is
        eager, its scores twice in the model's type and once in float32; the logits once, and twice
        more in float32 for LOSS_POSITIONS of them.
        """
        tokens, square = batch * length, batch * length * length
        states = tokens * self.itemsize * (_STREAMS * self.hidden + self.width)
        attention = square * _MASKS
        if self.eager:
            attention += square * self.heads * (2 * self.itemsize + 4)
        slices = 2 * 4 * batch * min(length, LOSS_POSITIONS)
        logits = self.vocabulary * (tokens * self.itemsize + slices)
        return states + attention + logits + 16 * tokens


def _width(config: Any, hidden: int) -> int:
    """Elements for one token in the widest block: gate and up, their product, and the outputs."""

    def number(*names: str) -> int:
        return max(int(getattr(config, name, None) or 0) for name in names)

    dense = 3 * number("intermediate_size", "shared_expert_intermediate_size")
    each = 3 * (number("moe_intermediate_size") or number("intermediate_size")) + 2 * hidden
    return max(dense, number("num_experts_per_tok", "moe_topk", "top_k_experts") * each)
