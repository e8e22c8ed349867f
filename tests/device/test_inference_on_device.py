"""A compressed model on a device that is pretended, with the logits of the CPU."""

from pathlib import Path

import pytest
import torch
from strict_device import StrictTensor, strict

from globe_stream.export.model import export_model
from globe_stream.inference.pretrained import from_pretrained

TOKENS = torch.randint(0, 256, (2, 24), generator=torch.Generator().manual_seed(5))


def moved(model: torch.nn.Module, device: str) -> torch.nn.Module:
    """`model` with its parameters and buffers on the pretended device."""
    for module in model.modules():
        for name, values in list(module._parameters.items()):
            if values is not None:
                module._parameters[name] = torch.nn.Parameter(
                    values.detach().to(device), requires_grad=False
                )
        for name, values in list(module._buffers.items()):
            if values is not None:
                module._buffers[name] = values.to(device)
    return model


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mps", "cuda"])
@pytest.mark.parametrize("bits", [None, (8, 4)])
def test_a_compressed_model(
    run: Path, tmp_path: Path, kind: str, bits: tuple[int, int] | None
) -> None:
    """With floats, and with packed adapters that are unpacked by a Cholesky factor."""
    export_model(run, tmp_path / "out", dtype="fp32" if bits is None else None, bits=bits)
    loaded = from_pretrained(tmp_path / "out")
    loaded.set_attn_implementation("eager")  # else torch takes a kernel of the CPU
    with torch.no_grad():
        expected = loaded(TOKENS).logits
        with strict(kind) as pretended:
            found = moved(loaded, kind)(TOKENS.to(kind)).logits
            assert isinstance(found, StrictTensor)
            found = found.cpu()
    assert pretended.operations["mm"] + pretended.operations["bmm"] > 0
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
