"""Normal numbers from a counter: the published words, the normal law, and no dependence on company."""

import os

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from ndc_core.noise import counter_normals
from ndc_core.noise.counter_normals import box_muller, fill_normal, philox

ALL = 0xFFFFFFFF
# Counter, key and words, from the test vectors that come with Random123 (Salmon et al. 2011).
PUBLISHED = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ALL, ALL, ALL, ALL), (ALL, ALL), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def drawn(keys: torch.Tensor, streams: torch.Tensor, numbers: int, device: str = "cpu") -> torch.Tensor:
    out = torch.full((len(keys), numbers), torch.nan, device=device)
    fill_normal(out, keys.to(device), streams.to(device))
    return out


def some_keys(rows: int) -> torch.Tensor:
    return torch.randint(0, 2**32, (rows, 4), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("counter", "key", "words"), PUBLISHED)
def test_the_words_are_the_published_ones(counter, key, words) -> None:
    tensors = [torch.tensor(word) for word in (*counter, *key)]
    assert tuple(map(int, philox(tuple(tensors[:4]), tuple(tensors[4:])))) == words


def test_every_word_and_a_last_number_are_finite() -> None:
    """The logarithm's argument is never 0, and the largest number is the one of the smallest word."""
    words = torch.tensor([0, 1, ALL - 1, ALL])
    radius = torch.stack(box_muller(words, torch.zeros_like(words)))
    assert radius.isfinite().all()
    assert radius.abs().max() < 6.8


def test_the_numbers_are_normal_and_independent() -> None:
    numbers = drawn(some_keys(1000), torch.arange(1000), 200).double().numpy()
    assert stats.kstest(numbers.ravel(), "norm").pvalue > 0.001
    assert abs(stats.skew(numbers.ravel())) < 0.02
    assert abs(stats.kurtosis(numbers.ravel())) < 0.05
    correlation = np.corrcoef(numbers.T) - np.eye(200)
    assert abs(correlation).max() < 5 / 1000**0.5
    # Both numbers of a pair come from one radius: their squares must not tell of each other either.
    squares = np.corrcoef((numbers**2).T) - np.eye(200)
    assert abs(squares).max() < 6 / 1000**0.5


@given(numbers=st.integers(1, 70), rows=st.integers(1, 9), data=st.data())
def test_a_row_does_not_depend_on_the_others_nor_on_how_many_are_made_at_once(numbers, rows, data) -> None:
    keys, streams = some_keys(rows), torch.arange(rows) * 7
    together = drawn(keys, streams, numbers)
    row = data.draw(st.integers(0, rows - 1))
    np.testing.assert_array_equal(drawn(keys[row : row + 1], streams[row : row + 1], numbers)[0], together[row])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(counter_normals, "BLOCKS_AT_ONCE", {"cpu": data.draw(st.integers(1, 40))})
        np.testing.assert_array_equal(drawn(keys, streams, numbers), together)


def test_every_word_of_a_key_and_the_stream_matter() -> None:
    keys = torch.zeros(6, 4, dtype=torch.int64)
    keys[range(1, 5), range(4)] = 1
    streams = torch.tensor([0, 0, 0, 0, 0, 2**31])
    assert len(drawn(keys, streams, 8).unique(dim=0)) == 6


@pytest.mark.skipif(
    not (torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET")),
    reason="needs a GPU, or Triton and TRITON_INTERPRET=1",
)
@pytest.mark.parametrize("numbers", [1, 3, 64, 1500, 3072])
def test_the_kernel_makes_the_same_numbers(numbers) -> None:
    from ndc_core.noise import counter_kernel

    device = "cuda" if torch.cuda.is_available() else "cpu"
    keys, streams = some_keys(5), torch.tensor([0, 1, 2**31, 2**31 + 5, 3])
    out = torch.full((5, numbers), torch.nan, device=device)
    counter_kernel.fill_normal(out, keys.to(device), streams.to(device))
    np.testing.assert_allclose(out.cpu(), drawn(keys, streams, numbers), rtol=1e-5, atol=1e-6)
