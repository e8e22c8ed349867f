"""Bits per byte and perplexity against their definitions."""

import math
import types
from pathlib import Path
from typing import Any

import pytest
import torch

from globe_stream.config import Windows
from globe_stream.errors import InputError
from globe_stream.evaluation.perplexity import choose_batch, score, window_losses
from globe_stream.evaluation.text import read_windows
from globe_stream.memory.cost_model import COMPILED_BYTES, SLACK_BYTES
from globe_stream.memory.forward_pass import ForwardPass


class _Uniform:
    """A model over bytes that knows nothing."""

    device = torch.device("cpu")
    dtype = torch.float32

    def __init__(self) -> None:
        text = types.SimpleNamespace(vocab_size=256)
        self.config = types.SimpleNamespace(get_text_config=lambda: text)
        self.batches: list[int] = []

    def __call__(self, input_ids: torch.Tensor) -> Any:
        self.batches.append(len(input_ids))
        return types.SimpleNamespace(logits=torch.zeros(*input_ids.shape, 256))


class _Next(_Uniform):
    """Puts probability one half on the byte that follows in ASCII order, the rest spread evenly."""

    def __call__(self, input_ids: torch.Tensor) -> Any:
        logits = torch.full((*input_ids.shape, 256), math.log(0.5 / 255))
        logits.scatter_(2, ((input_ids + 1) % 256)[..., None], math.log(0.5))
        return types.SimpleNamespace(logits=logits)


def test_a_uniform_model_needs_eight_bits_a_byte(text: Path, tmp_path: Path) -> None:
    found = score(_Uniform(), text, tmp_path, Windows(count=5, length=20, stride=100))
    assert found.bits_per_byte == pytest.approx(8)
    assert found.perplexity == pytest.approx(256)
    assert (found.windows, found.tokens, found.bytes) == (5, 95, 95)
    assert found.tokens_per_second == pytest.approx(95 / found.seconds)


def test_every_token_but_the_first_is_predicted_from_its_past(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"abcdefgh" + b"aceg" + b"abcd" * 10)
    found = score(_Next(), tmp_path / "text", tmp_path, Windows(count=1, length=8, stride=1))
    assert found.bits_per_byte == pytest.approx(1)
    found = score(_Next(), tmp_path / "text", tmp_path, Windows(count=2, length=4, stride=8))
    hits, misses = 3, 3
    expected = (hits * 1 + misses * -math.log2(0.5 / 255)) / 6
    assert found.bits_per_byte == pytest.approx(expected)


def test_losses_equal_the_log_softmax() -> None:
    class Fixed(_Uniform):
        def __call__(self, input_ids: torch.Tensor) -> Any:
            generator = torch.Generator().manual_seed(2)
            return types.SimpleNamespace(
                logits=torch.randn(*input_ids.shape, 256, generator=generator)
            )

    tokens = torch.randint(0, 256, (2, 7), generator=torch.Generator().manual_seed(1))
    found = window_losses(Fixed(), tokens)
    logits = Fixed()(tokens).logits.double()
    for row in range(2):
        for place in range(6):
            other = logits[row, place]
            expected = other.exp().sum().log() - other[tokens[row, place + 1]]
            assert float(found[row, place]) == pytest.approx(float(expected), rel=1e-6)


def test_slices_of_positions_change_no_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = torch.randint(0, 256, (3, 40), generator=torch.Generator().manual_seed(1))
    whole = window_losses(_Next(), tokens)
    monkeypatch.setattr("globe_stream.evaluation.perplexity.LOSS_POSITIONS", 7)
    assert torch.equal(window_losses(_Next(), tokens), whole)


def test_batch_follows_the_budget(text: Path, tmp_path: Path) -> None:
    sizes = ForwardPass(vocabulary=1000, hidden=8, width=20, heads=2, itemsize=4, eager=False)
    one = sizes.bytes(1, 256)
    assert sizes.bytes(3, 256) == 3 * one
    held = 100 + COMPILED_BYTES + SLACK_BYTES
    assert [choose_batch(sizes, 256, held + k * one, 100) for k in (0, 1, 3, 50)] == [1, 1, 3, 8]
    model = _Uniform()
    score(model, text, tmp_path, Windows(count=5, length=20, stride=100), memory=1)
    assert model.batches == [1] * 5


def test_windows_beyond_the_text_are_left_out(text: Path, tmp_path: Path) -> None:
    size = text.stat().st_size
    found = read_windows(text, Windows(count=1000, length=50, stride=1000), 256, tmp_path)
    assert len(found) == len(range(0, size - 49, 1000))
    assert found[2].tokens.tolist() == list(text.read_bytes()[2000:2050])


@pytest.mark.parametrize(
    ("content", "vocabulary", "message"),
    [
        (b"short", 256, "5 bytes are too few"),
        (b"x" * 5000, 999, "no tokenizer"),
        (None, 256, "no such file or folder while reading the text"),
    ],
)
def test_bad_input(tmp_path: Path, content: bytes | None, vocabulary: int, message: str) -> None:
    if content is not None:
        (tmp_path / "text").write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_windows(
            tmp_path / "text", Windows(count=2, length=64, stride=100), vocabulary, tmp_path
        )


def test_tokenized_windows_count_the_bytes_they_stand_for(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    words = {"[UNK]": 0, "ä": 1, "bb": 2, "ccc": 3}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    transformers = pytest.importorskip("transformers")
    transformers.PreTrainedTokenizerFast(tokenizer_object=made).save_pretrained(tmp_path)
    (tmp_path / "text").write_bytes("ccc ä bb ccc ".encode() * 100)
    found = read_windows(tmp_path / "text", Windows(count=3, length=4, stride=14), 4, tmp_path)
    assert [window.tokens.tolist() for window in found] == [[3, 1, 2, 3]] * 3
    assert found[0].predicted_bytes == len("ä bb ccc".encode())
