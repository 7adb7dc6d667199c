"""What is drawn for a token: its support, its frequencies, and what they depend on."""

import numpy as np
import pytest
import torch

from llava.describing.decoding import Decoding, distribution, draw_per_sample, greedy

LOGITS = torch.tensor([0.3, 2.0, -1.0, 1.5, 0.9, 2.4, -0.2, 1.1])
DRAWS = 4000


def drawn(settings: Decoding, logits=LOGITS, seeds=range(DRAWS)) -> np.ndarray:
    """One token of each seed."""
    choose = draw_per_sample(settings, seeds)
    return np.array(choose(logits.repeat(len(seeds), 1), range(len(seeds))))


@pytest.mark.parametrize("top_k", [1, 2, 3, 5, 8, 50])
def test_support_is_the_top_k(top_k):
    order = LOGITS.argsort(descending=True).tolist()
    assert set(drawn(Decoding(2.0, top_k))) == set(order[:top_k])


@pytest.mark.parametrize("temperature", [0.2, 0.7, 1.0, 3.0])
@pytest.mark.parametrize("top_k", [3, 8])
def test_frequencies_follow_the_temperature(temperature, top_k):
    """Softmax of logits / temperature over the top k; 5 standard deviations of a frequency."""
    least = LOGITS.sort(descending=True).values[top_k - 1]
    kept = least <= LOGITS
    expected = (LOGITS / temperature).masked_fill(~kept, -torch.inf).softmax(0).double().numpy()
    counts = np.bincount(drawn(Decoding(temperature, top_k)), minlength=len(LOGITS))
    assert np.all(np.abs(counts / DRAWS - expected) <= 5 * np.sqrt(expected / DRAWS))
    found = distribution(LOGITS.numpy(), temperature, top_k)
    np.testing.assert_allclose(found, expected, atol=1e-7)


def test_equal_logits_at_the_edge_all_count():
    logits = torch.tensor([1.0, 3.0, 1.0, 1.0, 0.0])
    assert set(drawn(Decoding(1.0, 2), logits)) == {0, 1, 2, 3}


def test_a_token_depends_on_its_own_seed_and_place_alone():
    settings = Decoding(1.0, 8)
    alone = [drawn(settings, seeds=[seed])[0] for seed in range(40)]
    assert drawn(settings, seeds=range(40)).tolist() == alone
    assert len(set(alone)) > 2
    choose = draw_per_sample(settings, [7, 8])
    rows = LOGITS.repeat(2, 1)
    both = [choose(rows, [0, 1]) for _ in range(20)]
    late = draw_per_sample(settings, [7, 8])  # the other sample has ended after three tokens
    left = [late(rows, [0, 1])[1] for _ in range(3)] + [late(rows[1:], [1])[0] for _ in range(17)]
    assert left == [pair[1] for pair in both]
    assert len({pair[0] for pair in both}) > 1


def test_lowest_temperature_is_the_most_probable():
    assert greedy(LOGITS.repeat(2, 1), [0, 1]) == [5, 5]
    assert set(drawn(Decoding(0.01, 50))) == {5}
