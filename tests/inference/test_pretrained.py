"""Models in compressed form: loading, saving, generating, training, and what they hold."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fresh import Ended, Fresh, fresh_processes
from sample_runs import Recipe, larger_model, make_run

import globe_stream
from globe_stream.errors import InputError
from globe_stream.export.model import export_model
from globe_stream.inference.pretrained import from_pretrained, warm_up

TOKENS = torch.randint(0, 256, (3, 40), generator=torch.Generator().manual_seed(5))
EACH = 18 * 32 * 4  # bytes of one composed matrix in float32


@pytest.fixture(scope="module")
def folder(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("model-export") / "out"
    export_model(run, out, dtype="fp32")
    return out


def _logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=TOKENS).logits.float()


@pytest.fixture(scope="module")
def fresh() -> Iterator[Fresh]:
    with fresh_processes() as found:
        yield found


def _printed(ended: Ended) -> Any:
    """The JSON in the last line that a script printed."""
    assert ended.code == 0, ended.err
    return json.loads(ended.out.splitlines()[-1])


TRUSTED = """
import json, sys
import torch
from transformers import AutoModelForCausalLM
GREEDY = {"max_new_tokens": 5, "do_sample": False}
before = "globe_stream" in sys.modules
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
model.save_pretrained(sys.argv[1] + "-saved")
tokens = torch.arange(10)[None]
text = model.generate(tokens, attention_mask=torch.ones_like(tokens), **GREEDY)
print(json.dumps([before, type(model).__name__, text.tolist()]))
"""

IMPORTED = """
import json, sys
{imports}
import torch
GREEDY = dict(max_new_tokens=5, do_sample=False)
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
tokens = torch.arange(10)[None]
text = model.generate(tokens, attention_mask=torch.ones_like(tokens), **GREEDY)
print(json.dumps([type(model).__name__, text.tolist()]))
"""
FIRST = "import globe_stream\nfrom transformers import AutoModelForCausalLM"
AFTER = "from transformers import AutoModelForCausalLM\nimport globe_stream"


@pytest.mark.slow
def test_loads_generates_saves_and_loads_again_without_importing_the_package(
    tmp_path: Path, run: Path, fresh: Fresh
) -> None:
    out = tmp_path / "out"
    export_model(run, out)
    before, name, text = _printed(fresh.run(TRUSTED, out))
    assert not before
    assert name == "GlobeQwen2MoeForCausalLM"
    assert len(text[0]) == 15
    assert _printed(fresh.run(TRUSTED, f"{out}-saved")) == [False, name, text]


@pytest.mark.slow
def test_no_trust_is_needed_once_the_package_is_imported(folder: Path, fresh: Fresh) -> None:
    """Before transformers, in an interpreter that has nothing imported, or after it."""
    command = [sys.executable, "-c", IMPORTED.format(imports=FIRST), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    name, text = _printed(Ended(done.returncode, done.stdout, done.stderr))
    assert name == "GlobeQwen2MoeForCausalLM"
    assert len(text[0]) == 15
    assert _printed(fresh.run(IMPORTED.format(imports=AFTER), folder)) == [name, text]


@pytest.mark.slow
def test_without_the_package_the_type_is_unknown(folder: Path, fresh: Fresh) -> None:
    script = (
        "from transformers import AutoConfig; import sys; AutoConfig.from_pretrained(sys.argv[1])"
    )
    ended = fresh.run(script, folder)
    assert ended.code != 0
    assert "trust_remote_code" in ended.err


MEASURE = """
import json, sys, threading
from pathlib import Path
import psutil, torch
from transformers import AutoModelForCausalLM
import globe_stream.inference.pretrained
process = psutil.Process()
AutoModelForCausalLM.from_pretrained(sys.argv[2], trust_remote_code=True)(torch.arange(4)[None])
base = process.memory_info().rss
peak, over = base, threading.Event()
def watch():
    global peak
    while not over.wait(0.0005):
        peak = max(peak, process.memory_info().rss)
watcher = threading.Thread(target=watch)
watcher.start()
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
for parameter in model.parameters():
    parameter.detach().view(-1)[::512].float().sum()
over.set()
watcher.join()
print(json.dumps(max(peak, process.memory_info().rss) - base))
"""


@pytest.mark.slow
def test_loading_takes_the_folder_and_little_more(
    tmp_path: Path, folder: Path, fresh: Fresh
) -> None:
    larger_model(tmp_path / "model", experts=16, hidden=768, intermediate=512)
    recipe = Recipe(bases=16, rank=192, support=4, measured=False)
    run = make_run(tmp_path / "run", tmp_path / "model", recipe)
    result = export_model(run, tmp_path / "out")
    growth = _printed(fresh.run(MEASURE, tmp_path / "out", folder))
    assert result.bytes > 60 << 20
    assert 0.8 * result.bytes < growth <= 1.1 * result.bytes


def test_a_folder_without_factors_is_refused(model: Path) -> None:
    with pytest.raises(InputError, match="no model in compressed form"):
        from_pretrained(model)


def test_public_functions_are_visible() -> None:
    assert {"from_pretrained", "load_factors", "patch_model", "warm_up"} <= set(dir(globe_stream))
    assert globe_stream.from_pretrained is from_pretrained


def test_codes_survive_a_change_of_dtype(folder: Path) -> None:
    model = from_pretrained(folder, dtype=torch.float32)
    before = model.model.layers[0].mlp.experts.up_codes.clone()
    model.to(torch.bfloat16)
    assert torch.equal(model.model.layers[0].mlp.experts.up_codes, before)
    assert model.model.layers[0].mlp.experts.up_adapters.dtype == torch.bfloat16


# -- the cache -------------------------------------------------------------------------------------


def test_cache_defaults_to_half_of_what_was_saved(folder: Path) -> None:
    model = from_pretrained(folder, dtype=torch.float32)
    original = 2 * 12 * 24 * 32
    kept = 2 * (5 * 18 * 32 + 12 * 24 * 18)
    assert model.globe_cache.budget == 4 * (original - kept) // 2
    half = from_pretrained(folder, dtype=torch.bfloat16)
    assert half.globe_cache.budget == 2 * (original - kept) // 2
    assert from_pretrained(folder, cache="1MiB").globe_cache.budget == 1 << 20


@pytest.mark.parametrize("budget", [0, 3 * EACH, 1 << 20])
def test_results_do_not_depend_on_the_cache(folder: Path, budget: int) -> None:
    expected = _logits(from_pretrained(folder, dtype=torch.float32))
    model = from_pretrained(folder, cache=budget, dtype=torch.float32)
    for _ in range(2):
        torch.testing.assert_close(_logits(model), expected, rtol=1e-5, atol=1e-5)
    assert model.globe_cache.bytes <= budget
    assert len(model.globe_cache) == min(24, budget // EACH)


def test_warm_up_keeps_the_most_used(folder: Path) -> None:
    model = from_pretrained(folder, cache=5 * EACH, dtype=torch.float32)
    assert warm_up(model, TOKENS) == 5
    cache = model.globe_cache
    kept = [cache.requests[key] for key in cache.requests if key in cache]
    dropped = [cache.requests[key] for key in cache.requests if key not in cache]
    assert min(kept) >= max(dropped)


def test_after_warm_up_nothing_is_composed(folder: Path) -> None:
    model = from_pretrained(folder, cache="1MiB", dtype=torch.float32)
    assert warm_up(model) == 24
    misses = model.globe_cache.misses
    _logits(model)
    assert model.globe_cache.misses == misses


# -- training --------------------------------------------------------------------------------------


def test_gradients_reach_adapters_codes_and_bank(folder: Path) -> None:
    """Those of one layer of experts, against the definition in float64."""
    model = from_pretrained(folder, dtype=torch.float32)
    experts, bank = model.model.layers[0].mlp.experts, model.globe_banks["up"]
    generator = torch.Generator().manual_seed(3)
    inputs, wanted = torch.randn(2, 5, 32, generator=generator)
    chosen = torch.tensor([[0, 3], [1, 2], [5, 4], [3, 0], [2, 2]])
    weights = torch.rand(5, 2, generator=generator)
    trained = [experts.up_adapters, experts.up_codes, bank.atoms]
    (experts(inputs, chosen, weights) * wanted).sum().backward()
    exact = [parameter.detach().double().requires_grad_() for parameter in trained]
    _oracle(experts, bank, exact, inputs.double(), chosen, weights.double(), wanted).backward()
    for parameter, expected in zip(trained, exact, strict=True):
        assert expected.grad.norm() > 1e-3
        seen = parameter != 0  # the support of the codes stays
        difference = (parameter.grad.double() - expected.grad)[seen].norm()
        assert difference < 1e-4 * expected.grad.norm()


def _oracle(experts, bank, exact, inputs, chosen, weights, wanted) -> torch.Tensor:
    """The sum of outputs times `wanted`, with up's adapters, codes and atoms as in `exact`."""
    adapters, codes, atoms = exact
    sizes, silu = bank.sizes, torch.nn.functional.silu
    gate_hidden = {e: h.double() for e, h in experts.composed("gate", list(range(6))).items()}
    total = torch.zeros((), dtype=torch.float64)
    for token, numbers in enumerate(chosen.tolist()):
        for slot, e in enumerate(numbers):
            mixed = sizes.gain * torch.einsum("j,jrd->rd", codes[e], atoms)
            lam = sizes.lam
            up = adapters[e] @ ((1 - lam) * mixed + lam * silu(mixed)) + sizes.offset
            gate = experts.gate_adapters[e].detach().double() @ gate_hidden[e].detach()
            gate = gate + experts._parts["gate"].sizes.offset
            inner = silu(gate @ inputs[token]) * (up @ inputs[token])
            out = experts.down_proj[e].detach().double() @ inner
            total = total + weights[token, slot] * (out * wanted[token]).sum()
    return total


def test_a_training_step_is_seen_by_the_cache(folder: Path) -> None:
    model = from_pretrained(folder, cache="1MiB", dtype=torch.float32)
    before = _logits(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    model(input_ids=TOKENS, labels=TOKENS).loss.backward()
    optimizer.step()
    with torch.no_grad():
        changed = _logits(model)
        model.globe_cache.clear()
        assert torch.equal(_logits(model), changed)
    assert (changed - before).abs().max() > 1e-3


# -- placement -------------------------------------------------------------------------------------


def test_layers_on_disk(tmp_path: Path, folder: Path) -> None:
    expected = _logits(from_pretrained(folder, dtype=torch.float32))
    parts = ("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head", "globe_banks")
    places = {**dict.fromkeys(parts, "cpu"), "model.layers.0": "disk", "model.layers.1": "disk"}
    model = from_pretrained(
        folder, dtype=torch.float32, device_map=places, offload_folder=str(tmp_path / "offload")
    )
    torch.testing.assert_close(_logits(model), expected, rtol=1e-5, atol=1e-5)
    assert model.model.layers[0].mlp.experts.up_adapters.device.type == "meta"


def test_device_map_auto(folder: Path) -> None:
    model = from_pretrained(folder, dtype=torch.float32, device_map="auto")
    expected = _logits(from_pretrained(folder, dtype=torch.float32))
    torch.testing.assert_close(_logits(model).cpu(), expected, rtol=1e-5, atol=1e-5)
