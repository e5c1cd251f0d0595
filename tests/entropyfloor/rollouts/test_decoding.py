import numpy as np
import pytest
import torch
from scipy import stats

from entropyfloor.rollouts import decoding
from entropyfloor.rollouts.decoding import (
    SamplingProcessor,
    TokenSampler,
    inverse_cdf,
    next_token_entropy,
    rollout_uniforms,
)
from entropyfloor.rollouts.options import Sampling


@pytest.mark.parametrize("scale", [0.0, 1.0, 30.0, 1000.0])
@pytest.mark.parametrize("vocabulary", [2, 123, 50_257])
def test_entropy_against_double_precision(scale, vocabulary):
    logits = torch.randn(5, vocabulary, generator=torch.Generator().manual_seed(1)) * scale + 40.0
    reference = torch.distributions.Categorical(logits=logits.double()).entropy()
    assert next_token_entropy(logits)[0] == pytest.approx(reference.numpy(), abs=1e-5)


def test_a_masked_token_has_probability_zero():
    logits = torch.tensor([[0.0, 0.0, -torch.inf, torch.finfo(torch.float32).min]])
    assert next_token_entropy(logits)[0].item() == pytest.approx(np.log(2.0))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_broken_logits_give_no_entropy_and_a_token_all_the_same(bad):
    logits = torch.zeros(3, 300)
    logits[1, 2] = bad
    tokens, entropies = TokenSampler(Sampling())(logits, torch.full((3,), 0.5).double())
    assert entropies.isfinite().tolist() == [True, False, True]
    assert tokens[0] == tokens[2] == 150 and 0 <= tokens[1] < 300


def test_inside_generate_a_step_too_many_does_not_matter():
    """Deferred stopping may run one; the chosen token alone is possible."""
    uniforms = torch.tensor([[0.1], [0.6]], dtype=torch.float64)
    processor = SamplingProcessor(TokenSampler(Sampling()), 3, uniforms)
    for width in (3, 4):
        scores = processor(torch.zeros(2, width, dtype=torch.long), torch.zeros(2, 4))
        assert scores.argmax(-1).tolist() == [0, 2] and scores.isfinite().sum() == 2
    assert processor.entropies() == pytest.approx(np.full((2, 2), np.log(4.0)))


def test_uniforms_belong_to_the_rollout():
    both = rollout_uniforms(7, [(0, 1), (4, 2)], 6)
    alone = rollout_uniforms(7, [(4, 2)], 3)
    assert torch.equal(both[1, :3], alone[0])
    assert not torch.equal(both, rollout_uniforms(8, [(0, 1), (4, 2)], 6))
    keys = [(0, 0), (0, 1), (1, 0), (1, 1), (12, 0), (1, 20)]
    rows = rollout_uniforms(7, keys, 6)
    assert len({tuple(row) for row in rows.tolist()}) == len(keys)
    assert both.dtype == torch.float64
    assert ((both >= 0) & (both < 1)).all()


def _choose(logits: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    return inverse_cdf(logits.softmax(-1), uniform)


# A vocabulary of less than a block, of whole blocks, and of a part more.
@pytest.mark.parametrize("vocabulary", [5, 512, 523])
def test_inverse_cdf_at_the_edges(vocabulary):
    p = torch.zeros(vocabulary)
    low, high = vocabulary // 4, vocabulary - 2
    p[low], p[high] = 0.25, 0.75
    uniform = torch.tensor([0.0, 0.2499, 0.2501, 1.0 - 2.0**-53], dtype=torch.float64)
    assert _choose(p.log().expand(4, -1), uniform).tolist() == [low, low, high, high]


@pytest.mark.parametrize("vocabulary", [2, 1000])
def test_the_far_tail_can_be_drawn(vocabulary):
    """A token of probability 1e-9 after one of almost one: lost where sums are kept in fp32."""
    logits = torch.full((1, vocabulary), -torch.inf)
    logits[0, 0], logits[0, -1] = 0.0, np.log(1e-9)
    uniform = torch.tensor([1.0 - 1e-10], dtype=torch.float64)
    assert _choose(logits, uniform).item() == vocabulary - 1


@pytest.mark.parametrize("vocabulary", [7, 261, 4096, 50_257])
@pytest.mark.parametrize("rows_at_once", [1, 2**24])
def test_tokens_are_those_of_one_cumulative_sum(vocabulary, rows_at_once, monkeypatch):
    monkeypatch.setattr(decoding, "_CACHED", rows_at_once)
    logits = torch.randn(64, vocabulary, generator=torch.Generator().manual_seed(2)) * 3.0
    uniforms = rollout_uniforms(1, [(0, sample) for sample in range(64)], 1)[:, 0]
    weights = np.exp(logits.numpy() - logits.numpy().max(-1, keepdims=True)).astype(np.float64)
    cumulative = weights.cumsum(-1)
    exact = [
        int(np.searchsorted(row, u * row[-1], side="right"))
        for row, u in zip(cumulative, uniforms.numpy(), strict=True)
    ]
    assert TokenSampler(Sampling())(logits, uniforms)[0].tolist() == exact


def test_draws_follow_the_distribution():
    logits = torch.randn(12, generator=torch.Generator().manual_seed(3)) * 2.0
    uniform = rollout_uniforms(0, [(0, sample) for sample in range(20_000)], 1)[:, 0]
    counts = torch.bincount(_choose(logits.expand(len(uniform), -1), uniform), minlength=12)
    expected = logits.double().softmax(-1) * len(uniform)
    assert stats.chisquare(counts.numpy(), expected.numpy()).pvalue > 0.01
