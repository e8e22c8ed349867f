"""Runs and tiny models made in a few lines, so that export is tested without training."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from globe_stream.checkpoint.experts import upright
from globe_stream.checkpoint.index import ExpertIndex, Selection, open_index
from globe_stream.checkpoint.reader import read_expert
from globe_stream.factorization.records import (
    GroupRecord,
    GroupState,
    RunConfig,
    RunHeader,
    seeded_state,
)
from globe_stream.store import codes
from globe_stream.store.run import Run

LAYERS, EXPERTS, HIDDEN, INTERMEDIATE = 2, 6, 32, 24


def tiny_model(folder: Path, *, dtype: torch.dtype = torch.bfloat16, shard: str = "60KB") -> Path:
    """A random Qwen2-MoE over bytes, saved by transformers in several shards."""
    from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM

    torch.manual_seed(0)
    config = Qwen2MoeConfig(
        vocab_size=256,
        hidden_size=HIDDEN,
        intermediate_size=48,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        num_key_value_heads=2,
        moe_intermediate_size=INTERMEDIATE,
        shared_expert_intermediate_size=2 * INTERMEDIATE,
        num_experts=EXPERTS,
        num_experts_per_tok=2,
        max_position_embeddings=128,
        use_cache=False,
    )
    model = Qwen2MoeForCausalLM(config).to(dtype)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    model.save_pretrained(folder, max_shard_size=shard)
    return folder


def with_tokenizer(folder: Path) -> Path:
    """Put a tokenizer of bytes beside the weights."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from tokenizers.decoders import ByteLevel
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({char: k for k, char in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    return folder


def larger_model(folder: Path, *, experts: int, hidden: int, intermediate: int) -> Path:
    """A random Qwen2-MoE of four layers, large enough to measure memory with."""
    from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM

    torch.manual_seed(0)
    config = Qwen2MoeConfig(
        vocab_size=256,
        hidden_size=hidden,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=2,
        moe_intermediate_size=intermediate,
        shared_expert_intermediate_size=64,
        num_experts=experts,
        num_experts_per_tok=2,
        max_position_embeddings=128,
        use_cache=False,
    )
    Qwen2MoeForCausalLM(config).to(torch.bfloat16).save_pretrained(folder, max_shard_size="40MB")
    return folder


def tiny_of_type(folder: Path, kind: str) -> Path:
    """A random model of another type, with the sizes of `tiny_model` where it has them."""
    import transformers

    torch.manual_seed(0)
    sizes = {
        "vocab_size": 256,
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "intermediate_size": INTERMEDIATE,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "num_experts_per_tok": 2,
        "max_position_embeddings": 128,
        "pad_token_id": 0,
    }
    sizes["num_experts" if kind == "olmoe" else "num_local_experts"] = EXPERTS
    if kind == "gpt_oss":
        sizes["head_dim"] = 16
    config = transformers.AutoConfig.for_model(kind, **sizes)
    model = transformers.AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    model.save_pretrained(folder)
    return folder


@dataclass(frozen=True)
class Recipe:
    """What a made-up run looks like."""

    families: tuple[str, ...] = ("up", "gate")
    bases: int = 5
    rank: int = 18
    support: int = 3
    activation: str = "silu"
    lam: float = 0.5
    gain: float = 1.0
    mean: float = 0.01
    scale: float = 0.1
    stage: str = "trained"
    per_layer: bool = False
    include_shared: bool = False
    max_experts: int | None = None
    measured: bool = True  # else the errors recorded are a guess, which saves their computation


def make_run(folder: Path, model: Path, recipe: Recipe | None = None) -> Path:
    """A run of `model` whose banks are random and whose adapters are optimal for them."""
    recipe = recipe or Recipe()
    index = open_index(str(model))
    chosen = index.select(
        Selection(
            families=recipe.families,
            max_experts=recipe.max_experts,
            include_shared=recipe.include_shared,
        )
    )
    groups = _groups(chosen, recipe)
    run = Run.create(
        folder,
        RunHeader(
            str(model),
            index.model_type,
            None,
            index.fingerprint(),
            RunConfig({}, {"method": "random"}, "cpu"),
            tuple(record for record, _ in groups),
        ),
    )
    with run:
        for number, (record, experts) in enumerate(groups):
            _commit_group(run, record, experts, recipe, number)
    return folder


def _groups(index: ExpertIndex, recipe: Recipe) -> list[tuple[GroupRecord, list[Any]]]:
    groups = []
    for family in recipe.families:
        members = [upright(expert) for expert in index.experts[family]]
        layers = sorted({expert.layer for expert in members})
        spans = [[layer] for layer in layers] if recipe.per_layer else [layers]
        for span in spans:
            experts = [expert for expert in members if expert.layer in span]
            key = f"{family}/layers-{span[0]:03d}-{span[-1]:03d}" if recipe.per_layer else family
            p, d = experts[0].shape
            groups.append(
                (
                    GroupRecord(key, family, len(experts), p, d, recipe.rank, recipe.bases),
                    experts,
                )
            )
    return groups


def _commit_group(
    run: Run, record: GroupRecord, experts: list[Any], recipe: Recipe, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    bank = torch.randn(recipe.bases, recipe.rank, record.d, generator=generator)
    bank /= bank.flatten(1).norm(dim=1)[:, None, None]
    values = torch.rand(len(experts), recipe.bases, generator=generator) + 0.1
    dropped = torch.rand(len(experts), recipe.bases, generator=generator).argsort(1)
    values.scatter_(1, dropped[:, recipe.support :], 0.0)
    gamma = recipe.gain * (recipe.rank * record.d) ** 0.5
    originals = torch.stack([read_expert(expert) for expert in experts])
    norms = originals.double().square().sum((1, 2))
    errors = norms / 4
    state = GroupState(
        stage=recipe.stage,
        epoch=0 if recipe.stage == "seeded" else 3,
        passes=5,
        relative_frobenius_error=0.5,
        squared_norm=float(norms.sum()),
        svd_relative_error=None,
        svd_sampled=0,
        mean=recipe.mean,
        scale=recipe.scale,
        lambda_a=1e-9,
        activation=recipe.activation,
        activation_lambda=recipe.lam,
        gamma=gamma,
        temperature=1.0,
        median_support=float(recipe.support),
        explained_variance=0.5,
        seeding_method="random",
        bytes_read=0,
        seconds=0.0,
    )
    if recipe.measured:
        rebuilt = [oracle(w, bank, a, state) for w, a in zip(originals, values, strict=True)]
        errors = (torch.stack(rebuilt) - originals).square().sum((1, 2))
    error = float((errors.sum() / norms.sum()).sqrt())
    state = replace(state, relative_frobenius_error=error)
    members = torch.tensor([[e.layer, e.expert, int(e.shared)] for e in experts]).int()
    key = record.key
    run.commit(
        {key: state},
        {
            f"{key}/bank": bank,
            f"{key}/norms": norms,
            f"{key}/errors": errors,
            f"{key}/experts": members,
            **codes.named(key, values),
        },
    )


def oracle(weights: Tensor, bank: Tensor, code: Tensor, state: GroupState) -> Tensor:
    """W_hat (p, d) in float64, by the definition and numpy-style least squares."""
    mixture = torch.einsum("j,jrd->rd", code.double(), bank.double()) * state.gamma
    act = {"silu": torch.nn.functional.silu, "tanh": torch.tanh, "none": lambda x: x}
    lam = state.activation_lambda
    hidden = (1 - lam) * mixture + lam * act[state.activation](mixture)
    target = (weights.double() - state.mean) / state.scale
    adapter = torch.linalg.lstsq(hidden.T, target.T).solution.T
    return state.scale * adapter @ hidden + state.mean


def run_oracle(folder: Path, key: str, position: int, weights: Tensor) -> Tensor:
    """`oracle` for one expert of a run."""
    from globe_stream.store import arrays

    with Run(folder, writable=False) as run:
        state = seeded_state(run, key)
        bank = torch.from_numpy(arrays.read(run.array(f"{key}/bank")))
        code = codes.load(run, key, len(bank))[position]
    return oracle(weights, bank, code, state)
