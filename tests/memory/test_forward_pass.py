"""What a forward pass holds, against its estimate, in a process for each length."""

import json
import subprocess
import sys

import pytest

from globe_stream.memory.forward_pass import LOSS_POSITIONS, ForwardPass

PROGRAM = """
import json, os, sys, torch
from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM
from globe_stream.evaluation.perplexity import window_losses
from globe_stream.memory.forward_pass import ForwardPass
from globe_stream.memory.meter import Meter

torch.set_num_threads(1)

def measure(attention, vocabulary, length):
    config = Qwen2MoeConfig(
        vocab_size=vocabulary, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=4, moe_intermediate_size=48, num_experts=4,
        shared_expert_intermediate_size=96, num_experts_per_tok=2, use_cache=False,
        attn_implementation=attention,
    )
    model = Qwen2MoeForCausalLM(config).eval()
    sizes, meter = ForwardPass.of(model), Meter()
    tokens = torch.zeros(1, length, dtype=torch.int64)
    window_losses(model, tokens[:, :64])
    before = meter.now()
    with meter.stage("score"):
        window_losses(model, tokens)
    print(meter.peak - before, sizes.bytes(1, length), flush=True)

for case in json.loads(sys.argv[1]):
    child = os.fork()  # before any arithmetic, and after the libraries were read
    if not child:
        measure(*case)
        os._exit(0)
    os.waitpid(child, 0)
"""

CASES = [("sdpa", 256, 8_000), ("sdpa", 40_000, 1_500), ("eager", 256, 2_500)]


@pytest.mark.slow
def test_the_peak_stays_below_the_estimate():
    arguments = [sys.executable, "-c", PROGRAM, json.dumps(CASES)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    found = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]
    assert len(found) == len(CASES)
    for case, (peak, estimate) in zip(CASES, found, strict=True):
        assert estimate / 6 < peak < 1.1 * estimate, case


def test_the_parts_of_the_estimate():
    sizes = ForwardPass(vocabulary=11, hidden=3, width=7, heads=5, itemsize=2, eager=False)
    states, masks = 2 * 20 * 2 * (8 * 3 + 7), 2 * 20 * 20 * 3
    logits = 11 * (2 * 20 * 2 + 2 * 4 * 2 * 20)
    assert sizes.bytes(2, 20) == states + masks + logits + 16 * 2 * 20
    eager = ForwardPass(vocabulary=11, hidden=3, width=7, heads=5, itemsize=2, eager=True)
    assert eager.bytes(2, 20) - sizes.bytes(2, 20) == 2 * 20 * 20 * 5 * (2 * 2 + 4)
    longer = sizes.bytes(1, LOSS_POSITIONS + 1) - sizes.bytes(1, LOSS_POSITIONS)
    assert longer < sizes.bytes(1, LOSS_POSITIONS) - sizes.bytes(1, LOSS_POSITIONS - 1)
