"""StoredBank against Zarr itself, in every way a bank may be chunked."""

from pathlib import Path

import pytest
import torch

from globe_stream.errors import GlobeError
from globe_stream.store import arrays
from globe_stream.store.bank import StoredBank
from globe_stream.store.tiles import Tiles

BANK = torch.randn(7, 10, 6, generator=torch.Generator().manual_seed(1))


def _tiled(rows: int) -> Tiles:
    tiles = Tiles((7, 10, 6), rows)
    for tile, (start, stop) in enumerate(tiles.bounds):
        tiles.store(tile, BANK[:, start:stop].contiguous())
    return tiles


@pytest.mark.parametrize("source", [BANK, _tiled(10), _tiled(4)], ids=["plain", "one", "tiles"])
@pytest.mark.parametrize("resident", [True, False])
def test_atoms_equal_zarr(tmp_path: Path, source: object, resident: bool) -> None:
    arrays.write(tmp_path / "bank", source)  # type: ignore[arg-type]
    expected = torch.from_numpy(arrays.read(tmp_path / "bank"))
    with StoredBank(tmp_path / "bank", resident=resident) as bank:
        found = torch.stack([bank.atom(number).clone() for number in range(7)])
    assert torch.equal(found, expected)
    assert torch.equal(found, BANK)


def test_atoms_in_several_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "CHUNK_BYTES", 2 * 10 * 6 * 4)
    arrays.write(tmp_path / "bank", BANK)
    with StoredBank(tmp_path / "bank", resident=False) as bank:
        assert torch.equal(bank.atom(6), BANK[6])
        assert torch.equal(bank.atom(3), BANK[3])


def test_flipped_bit_is_an_error(tmp_path: Path) -> None:
    arrays.write(tmp_path / "bank", BANK)
    chunk = next(path for path in (tmp_path / "bank" / "c").rglob("*") if path.is_file())
    data = bytearray(chunk.read_bytes())
    data[100] ^= 1
    chunk.write_bytes(data)
    with pytest.raises(GlobeError, match="damaged"):
        StoredBank(tmp_path / "bank", resident=True)


def test_missing_chunk_is_an_error(tmp_path: Path) -> None:
    arrays.write(tmp_path / "bank", BANK)
    next(path for path in (tmp_path / "bank" / "c").rglob("*") if path.is_file()).unlink()
    with pytest.raises(GlobeError, match="missing"):
        StoredBank(tmp_path / "bank", resident=False)
