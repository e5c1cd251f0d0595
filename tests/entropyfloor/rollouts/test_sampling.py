import numpy as np
import pytest
import torch
from scipy import stats

from entropyfloor.rollouts.sampling import (
    EntropyRecorder,
    InverseCDFSampler,
    next_token_entropy,
    rollout_uniforms,
)


@pytest.mark.parametrize("scale", [0.0, 1.0, 30.0, 1000.0])
@pytest.mark.parametrize("vocabulary", [2, 123, 50_257])
def test_entropy_against_double_precision(scale, vocabulary):
    logits = torch.randn(5, vocabulary, generator=torch.Generator().manual_seed(1)) * scale + 40.0
    reference = torch.distributions.Categorical(logits=logits.double()).entropy()
    assert next_token_entropy(logits) == pytest.approx(reference.numpy(), abs=1e-5)


def test_a_masked_token_has_probability_zero():
    logits = torch.tensor([[0.0, 0.0, -torch.inf, torch.finfo(torch.float32).min]])
    assert next_token_entropy(logits).item() == pytest.approx(np.log(2.0))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_broken_logits_are_reported_with_checkpoint_and_step(bad):
    recorder = EntropyRecorder(3, [1], "runs/broken")
    recorder(torch.zeros(2, 3, dtype=torch.long), torch.zeros(2, 4))
    logits = torch.zeros(2, 4)
    logits[1, 2] = bad
    with pytest.raises(ValueError, match=r"runs/broken gave logits that are NaN .* token 1;"):
        recorder(torch.zeros(2, 4, dtype=torch.long), logits)


def test_broken_logits_after_the_end_do_not_matter():
    recorder = EntropyRecorder(3, [1], "x")
    recorder(torch.zeros(2, 3, dtype=torch.long), torch.zeros(2, 4))
    ended = torch.tensor([[0, 0, 0, 2], [0, 0, 0, 1]])
    logits = torch.zeros(2, 4)
    logits[1] = torch.nan
    recorder(ended, logits)
    assert recorder.entropies().shape == (2, 2)


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
    sampler = InverseCDFSampler(2, uniform.unsqueeze(1))
    return sampler(torch.zeros(len(uniform), 2, dtype=torch.long), logits).argmax(dim=-1)


def test_inverse_cdf_at_the_edges():
    p = torch.tensor([0.0, 0.25, 0.0, 0.75, 0.0])
    uniform = torch.tensor([0.0, 0.2499, 0.2501, 1.0 - 2.0**-53], dtype=torch.float64)
    assert _choose(p.log().expand(4, -1), uniform).tolist() == [1, 1, 3, 3]


def test_the_far_tail_can_be_drawn():
    """A token of probability 1e-9 after one of almost one: lost where sums are kept in fp32."""
    logits = torch.tensor([[0.0, np.log(1e-9)]])
    assert _choose(logits, torch.tensor([1.0 - 1e-10], dtype=torch.float64)).item() == 1


def test_draws_follow_the_distribution():
    logits = torch.randn(12, generator=torch.Generator().manual_seed(3)) * 2.0
    uniform = rollout_uniforms(0, [(0, sample) for sample in range(20_000)], 1)[:, 0]
    counts = torch.bincount(_choose(logits.expand(len(uniform), -1), uniform), minlength=12)
    expected = logits.double().softmax(-1) * len(uniform)
    assert stats.chisquare(counts.numpy(), expected.numpy()).pvalue > 0.01
