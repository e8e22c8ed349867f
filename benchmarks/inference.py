"""Memory and speed of a model: original, dense export, and compressed at three cache sizes.

    python benchmarks/inference.py MODEL FOLDER... [--dense DENSE] [--prompt 256] [--generate 32]

MODEL is the original checkpoint and FOLDER an export in the format model. Every row is a process of
its own. Held are the tensors of the model and its cache, resident what the process grew by until it
had generated. Prompt and generation are in tokens a second of one thread's own time, the best of
three, so that other work on the machine counts for little. Composed is the share of the machine's
speed of copying that composing reaches, counting support x r x d elements read; with every matrix
in the cache nothing is composed.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import psutil
import torch
from runs import machine_line, markdown

import globe_stream
from globe_stream.formatting import format_bytes
from globe_stream.inference.layers import ComposedExperts

HEADS = ("model", "cache", "held", "resident", "prompt", "generation", "hits", "composed")
CACHES = ("none", "half of what is saved", "everything")


@click.command(help=__doc__.split("\n", 1)[0] if __doc__ else None)
@click.argument("model", type=click.Path(path_type=Path, exists=True))
@click.argument("folders", nargs=-1, type=click.Path(path_type=Path, exists=True))
@click.option("--dense", type=click.Path(path_type=Path, exists=True), help="A dense export.")
@click.option("--dtype", default="bfloat16", show_default=True)
@click.option("--prompt", default=256, show_default=True, help="Tokens of the prompt.")
@click.option("--generate", default=32, show_default=True, help="Tokens to generate.")
@click.option("--worker", nargs=2, hidden=True, help="Measure one row: its name and its cache.")
def main(
    model: Path,
    folders: tuple[Path, ...],
    dense: Path | None,
    dtype: str,
    prompt: int,
    generate: int,
    worker: tuple[str, str] | None,
) -> None:
    if worker is not None:
        click.echo(json.dumps(measure(model, *worker, dtype, prompt, generate)))
        return
    rows = [("original", model, "-")]
    rows += [("dense", dense, "-")] if dense else []
    rows += [(folder.name, folder, cache) for folder in folders for cache in CACHES]
    found = []
    for name, path, cache in rows:
        sizes = ["--dtype", dtype, "--prompt", str(prompt), "--generate", str(generate)]
        command = [sys.executable, __file__, str(path), *sizes, "--worker", name, cache]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        found.append(json.loads(done.stdout.splitlines()[-1]))
        click.echo(f"{name}, {cache}: {found[-1]}", err=True)
    click.echo(f"{machine_line()}, {dtype}\n\n{markdown(list(HEADS), found)}")


def measure(path: Path, name: str, cache: str, dtype: str, prompt: int, generate: int) -> list[str]:
    """One row of the table."""
    import transformers

    torch.set_num_threads(1)
    process = psutil.Process()
    before = process.memory_info().rss
    options = {"dtype": getattr(torch, dtype)}
    if cache == "-":
        model = transformers.AutoModelForCausalLM.from_pretrained(path, **options).eval()
    else:
        model = globe_stream.from_pretrained(path, **options).eval()
        budget = {"none": 0, "everything": 1 << 40}.get(cache)
        model.globe_cache.budget = model.globe_cache.budget if budget is None else budget
    vocabulary = int(model.config.vocab_size)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, vocabulary, (1, prompt), generator=generator)
    if cache != "-":
        globe_stream.warm_up(model, tokens)
    read = _best(lambda: _forward(model, tokens))
    written = _best(lambda: _generate(model, tokens[:, :8], generate)) - _best(
        lambda: _generate(model, tokens[:, :8], 1)
    )
    held = sum(one.numel() * one.itemsize for one in (*model.parameters(), *model.buffers()))
    hits = composed = "-"
    if cache != "-":
        kept = model.globe_cache
        held += kept.bytes
        hits = f"{kept.hits / max(1, kept.hits + kept.misses):.0%}"
        composed = composition(model)
    grown = process.memory_info().rss - before
    speeds = (f"{prompt / read:.0f}", f"{(generate - 1) / written:.1f}")
    return [name, cache, format_bytes(held), format_bytes(grown), *speeds, hits, composed]


def composition(model: Any) -> str:
    """The share of the speed of copying that composing the experts of a token reaches."""
    module = next(one for one in model.modules() if isinstance(one, ComposedExperts))
    family = next(name for name, part in module._parts.items() if part.rows)
    bank, codes = module._parts[family].bank, getattr(module, f"{family}_codes")
    chosen = codes[: int(getattr(model.config, "num_experts_per_tok", 4))]
    stored = bank.stored
    used = int(chosen.any(0).sum())
    size = stored.numel() * stored.itemsize * used / len(stored)
    with torch.no_grad():
        seconds = _best(lambda: bank(chosen))
    block = torch.empty(64 << 20, dtype=torch.uint8)
    copying = 2 * len(block) / _best(block.clone)
    return f"{size / seconds / copying:.0%}"


@torch.no_grad()
def _forward(model: Any, tokens: torch.Tensor) -> None:
    model(input_ids=tokens)


def _generate(model: Any, tokens: torch.Tensor, count: int) -> None:
    model.generate(
        tokens, max_new_tokens=count, min_new_tokens=count, do_sample=False, use_cache=True
    )


def _best(call: Callable[[], Any], repeats: int = 3) -> float:
    times = []
    for _ in range(repeats):
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return min(times)


if __name__ == "__main__":
    main()
