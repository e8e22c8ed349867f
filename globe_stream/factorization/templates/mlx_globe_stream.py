"""Runs this folder with MLX, as the commands of mlx-lm do when they may trust its code.

The model of the source's type as mlx-lm has it, with gate and up projections of the experts
computed from factors: W = scale A phi(sum_j code_j atom_j) + offset. It needs mlx and mlx-lm only.
Composed matrices are kept within a budget of bytes, at most half of what the factors save, the
most requested ones first; set `model.globe_cache.budget` to change it.
"""

import importlib
import json
import math
import re
from collections import Counter
from pathlib import Path

import mlx.core as mx
from mlx import nn
from mlx_lm import utils
from mlx_lm.models.switch_layers import SwitchGLU

_CONFIG = json.loads((Path(__file__).parent / "config.json").read_text(encoding="utf-8"))
_FACTORS = _CONFIG["globe_stream"]
_TYPE = _CONFIG["model_type"].removeprefix("globe_stream_")
_SOURCE = importlib.import_module(f"mlx_lm.models.{utils.MODEL_REMAPPING.get(_TYPE, _TYPE)}")
_FAMILIES = ("gate", "up")
_TRELLIS = {2: (3, 1.15, 25), 3: (2, 1.3, 29), 4: (1, 1.3, 7)}


class ModelArgs(_SOURCE.ModelArgs):
    """The arguments of the source's type."""

    @classmethod
    def from_dict(cls, params):
        """Those in config.json, some of which transformers 5 leaves out or calls otherwise."""
        found = {**(params.get("rope_parameters") or {}), **params, "model_type": _TYPE}
        found.setdefault("num_experts", params.get("num_local_experts"))
        found.setdefault("head_dim", params["hidden_size"] // params["num_attention_heads"])
        return super().from_dict(found)


class Model(_SOURCE.Model):
    """The source's model with factors in the place of experts."""

    def __init__(self, args):
        super().__init__(args)
        self.globe_banks = {_name(key): _Bank(unit) for key, unit in _FACTORS["units"].items()}
        self._places = {}
        blocks = dict(_experts(self))
        budget = 0
        for layer, parts in _FACTORS["layers"].items():
            if int(layer) not in blocks:
                raise ValueError(f"mlx-lm's {_TYPE} has no plain experts in layer {layer}")
            path, block = blocks[int(layer)]
            self._places[layer] = path
            count, _, p = block.down_proj.weight.shape
            for family in _FAMILIES:
                part = parts.get(family)
                bank = self.globe_banks[_name((part or _first(parts))["unit"])]
                linear = _Factors(bank, count, p, part["experts"] if part else [])
                setattr(block, f"{family}_proj", linear)
                budget += linear.saved_bytes // 2
        budget -= sum(bank.nbytes for bank in self.globe_banks.values()) // 2
        self.globe_cache = _Cache(max(0, budget))
        for _, block in blocks.values():
            for family in _FAMILIES:
                linear = getattr(block, f"{family}_proj")
                if isinstance(linear, _Factors):
                    linear.share(self.globe_cache)

    def sanitize(self, weights):
        """Tensors under the names that they have here."""
        found = {}
        for name, values in weights.items():
            match = re.fullmatch(r"globe_layers\.(\d+)\.(.*)", name)
            if match is None:
                found[name] = values
                continue
            path, part = self._places[match[1]], match[2]
            if part == "down_proj":
                found[f"{path}.down_proj.weight"] = values
            else:
                family, _, kind = part.partition("_")
                found[f"{path}.{family}_proj.{kind}"] = values
        tied = found.get("model.embed_tokens.weight")
        if "lm_head" in self and "lm_head.weight" not in found and tied is not None:
            found["lm_head.weight"] = tied
        clean = getattr(super(), "sanitize", lambda kept: kept)
        return clean(found if mx.default_device() == mx.gpu else _in_float32(found))


class _Bank(nn.Module):
    """The atoms (m, r, d) of one bank."""

    def __init__(self, unit):
        super().__init__()
        self._unit = unit
        m, r, d = (unit[name] for name in ("bases", "rank", "d"))
        if unit["bits"]:
            bits = unit["bits"][0]
            self.packed = mx.zeros((m, r, bits, -(-d // 8)), mx.uint8)
            self.scales = mx.zeros((m, r, _groups(d)), mx.bfloat16)
        else:
            self.atoms = mx.zeros((m, r, d), mx.bfloat16)

    @property
    def unit(self):
        return self._unit

    @property
    def nbytes(self):
        return sum(array.nbytes for array in self.parameters().values())

    def __call__(self, codes):
        """H (k, r, d) of dense codes (k, m)."""
        unit = self._unit
        if unit["bits"]:
            atoms = _dequantised(self.packed, self.scales, unit["d"], unit["bits"][0])
        else:
            atoms = self.atoms
        mixed = codes.astype(mx.float32) @ atoms.astype(mx.float32).flatten(1)
        mixed = mixed.reshape(-1, unit["rank"], unit["d"])
        gained, lam = unit["gain"] * mixed, unit["lambda"]
        bent = {"tanh": mx.tanh, "silu": nn.silu, "none": lambda values: values}[
            unit["activation"]
        ](gained)
        return (1 - lam) * gained + lam * bent


class _Factors(nn.Module):
    """In the place of a SwitchLinear: experts with factors, and dense ones for the others."""

    def __init__(self, bank, count, p, members):
        super().__init__()
        self._bank, self._p, self._cache = bank, p, None
        self._rows = {expert: row for row, expert in enumerate(members)}
        others = [expert for expert in range(count) if expert not in self._rows]
        self._others = {expert: row for row, expert in enumerate(others)}
        unit = bank.unit
        self._bits = unit["bits"][1] if unit["bits"] else None
        if members:
            self.codes = mx.zeros((len(members), unit["bases"]))
            if self._bits is None:
                self.adapters = mx.zeros((len(members), p, unit["rank"]), mx.bfloat16)
            else:
                packed = (len(members), self._bits, -(-p * unit["rank"] // 8))
                self.packed = mx.zeros(packed, mx.uint8)
                self.scales = mx.zeros((len(members), p, _groups(unit["rank"])), mx.bfloat16)
        if others:
            self.dense = mx.zeros((len(others), p, unit["d"]), mx.bfloat16)

    @property
    def saved_bytes(self):
        """Bytes of the matrices with factors, in 16 bits an element, less those of the adapters."""
        if not self._rows:
            return 0
        kept = self.adapters.nbytes if self._bits is None else self.packed.nbytes
        return 2 * len(self._rows) * self._p * self._bank.unit["d"] - kept

    def share(self, cache):
        """Use the model's cache."""
        self._cache = cache

    def __call__(self, x, indices, sorted_indices=False):  # noqa: ARG002 (a SwitchLinear's)
        """x (..., 1, d) times the matrices of `indices`; (..., 1, p)."""
        used = sorted(set(indices.flatten().tolist()))
        place = {expert: row for row, expert in enumerate(used)}
        lookup = mx.array([place.get(expert, 0) for expert in range(used[-1] + 1)])
        matrices = self._matrices([e for e in used if e in self._rows], x.dtype)
        if self._bits is None:
            made = self._thin(x, lookup[indices], used, matrices)
        else:
            stack = [matrices[e] if e in matrices else self.dense[self._others[e]] for e in used]
            made = _gather(x, mx.stack(stack), lookup[indices])
        return made.astype(x.dtype)

    def _thin(self, x, rows, used, matrices):
        """Through H and A for experts with factors, through their own matrices for the others."""
        unit, made = self._bank.unit, None
        if matrices:
            first = next(iter(matrices.values()))
            hidden = mx.stack([matrices.get(expert, first) for expert in used])
            chosen = mx.array([self._rows.get(expert, 0) for expert in used])
            made = _gather(_gather(x, hidden, rows), self.adapters[chosen], rows) * unit["scale"]
            if unit["offset"]:
                made = made + unit["offset"] * x.sum(-1, keepdims=True)
        others = [expert for expert in used if expert not in self._rows]
        if not others:
            return made
        chosen = mx.array([self._others.get(expert, 0) for expert in used])
        plain = _gather(x, self.dense[chosen], rows)
        if made is None:
            return plain
        factored = mx.array([expert in self._rows for expert in used])[rows]
        return mx.where(factored[..., None, None], made, plain)

    def _matrices(self, experts, kind):
        """H (r, d) by expert, or W (p, d) where factors are quantised, of the type `kind`."""
        found = {expert: self._cache.find((id(self), expert)) for expert in experts}
        missing = [expert for expert, kept in found.items() if kept is None]
        if missing:
            rows = [self._rows[expert] for expert in missing]
            made = self._bank(self.codes[mx.array(rows)])
            if self._bits is not None:
                made = self._whole(rows, made)
            made = made.astype(kind)
            mx.eval(made)
            for expert, matrix in zip(missing, made, strict=True):
                found[expert] = matrix
                self._cache.keep((id(self), expert), matrix)
        return found

    def _whole(self, rows, hidden):
        """W (k, p, d) from quantised adapters, which stand in an orthonormal basis of H's rows."""
        unit, rows = self._bank.unit, mx.array(rows)
        rank = unit["rank"]
        numbers = _unpacked(self.packed[rows], self._p * rank).reshape(-1, self._p, rank)
        adapters = _scaled(numbers, self.scales[rows], self._bits)
        return unit["scale"] * (adapters @ _orthonormal_rows(hidden)) + unit["offset"]


class _Cache:
    """Matrices by key within a budget of bytes; what is requested more often stays."""

    def __init__(self, budget):
        self.budget, self.bytes = budget, 0
        self.requests = Counter()
        self._kept = {}

    def find(self, key):
        self.requests[key] += 1
        return self._kept.get(key)

    def keep(self, key, matrix):
        while self.bytes + matrix.nbytes > self.budget:
            least = min(self._kept, key=self.requests.__getitem__, default=None)
            if least is None or self.requests[least] >= self.requests[key]:
                return
            self.bytes -= self._kept.pop(least).nbytes
        self._kept[key] = mx.array(matrix)
        self.bytes += matrix.nbytes


def _experts(model):
    """Path and module of all experts of mlx-lm's own kind without biases, by layer."""
    for path, module in model.named_modules():
        match = re.search(r"(?:^|\.)layers\.(\d+)\.", path)
        if match and isinstance(module, SwitchGLU) and "bias" not in module.down_proj:
            yield int(match[1]), (path, module)


def _gather(x, matrices, rows):
    """x (..., 1, d) times the transposed matrices (k, p, d) of `rows` (...)."""
    return mx.gather_mm(x, matrices.swapaxes(-1, -2).astype(x.dtype), rhs_indices=rows)


def _dequantised(packed, scales, count, bits):
    return _scaled(_unpacked(packed, count), scales, bits)


def _unpacked(packed, count):
    """Level numbers (..., count) of bit planes (..., bits, ceil(count / 8))."""
    places = mx.arange(8, dtype=mx.uint8)
    numbers = 0
    for plane in range(packed.shape[-2]):
        ones = (packed[..., plane, :, None] >> places) & 1
        numbers = numbers + (ones.flatten(-2).astype(mx.int32) << plane)
    return numbers[..., :count]


def _scaled(numbers, scales, bits):
    """Values of level numbers (..., n) whose groups have `scales` (..., groups)."""
    values = _trellis(numbers, bits) if bits in _TRELLIS else mx.linspace(-1, 1, 2**bits)[numbers]
    width = numbers.shape[-1]
    each = mx.repeat(scales.astype(mx.float32), -(-width // _groups(width)), axis=-1)
    return values * each[..., :width]


def _trellis(numbers, bits):
    """Values of a trellis code: an element's depends on its number and on those before it."""
    length, stretch, multiplier = _TRELLIS[bits]
    histories = 1 << (bits * length)
    history = mx.zeros_like(numbers)
    for step in range(1, length + 1):
        padding = [(0, 0)] * (numbers.ndim - 1) + [(step, 0)]
        history = (history << bits) | mx.pad(numbers, padding)[..., : numbers.shape[-1]]
    place = numbers * histories + history * multiplier % histories
    unit = (mx.arange(histories << bits) + 0.5) / (histories << bits)
    return (stretch * math.sqrt(2) * mx.erfinv(2 * unit - 1))[place]


def _orthonormal_rows(hidden):
    """L^-1 H (k, r, d) with H H^T + ridge = L L^T, in float64 on the CPU."""
    with mx.stream(mx.cpu):
        exact = hidden.astype(mx.float64)
        gram = exact @ exact.swapaxes(-1, -2)
        ridge = 1e-6 * mx.diagonal(gram, axis1=-2, axis2=-1).mean(-1)
        gram = gram + ridge[:, None, None] * mx.eye(gram.shape[-1], dtype=mx.float64)
        rows = mx.linalg.solve_triangular(mx.linalg.cholesky(gram), exact, upper=False)
        return rows.astype(mx.float32)


def _groups(width):
    return max(1, width // 64)


def _in_float32(weights):
    """Grouped products of MLX on a CPU are of float32 only; packed bits and scales stay."""
    halves = (mx.bfloat16, mx.float16)
    return {
        name: one.astype(mx.float32) if one.dtype in halves and name[-7:] != ".scales" else one
        for name, one in weights.items()
    }


def _first(parts):
    return next(iter(parts.values()))


def _name(key):
    return re.sub(r"\W", "_", key)
