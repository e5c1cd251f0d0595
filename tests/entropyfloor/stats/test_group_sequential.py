import numpy as np
import pytest

from entropyfloor.stats.group_sequential import bounds, look, spent

FRACTIONS = (0.2, 0.4, 0.6, 0.8, 1.0)
TAU_H = 0.18
ALPHA = 0.03


def test_bounds_are_those_of_the_literature():
    # Pocock-type spending, five equal looks, two-sided 0.05 (Lan and DeMets 1983; ldbounds).
    assert bounds(FRACTIONS, 0.05) == pytest.approx((2.438, 2.427, 2.410, 2.397, 2.386), abs=2e-3)
    assert bounds((1.0,), 0.05) == pytest.approx((1.960,), abs=1e-3)
    assert spent(1.0, 0.05) == pytest.approx(0.05)


def test_bounds_spend_exactly_alpha_on_normal_data():
    rng = np.random.default_rng(0)
    scores = np.cumsum(rng.normal(size=(200_000, 5)), axis=1) / np.sqrt(np.arange(1, 6))
    crossed = (np.abs(scores) >= np.array(bounds(FRACTIONS, 0.05))).any(axis=1)
    assert crossed.mean() == pytest.approx(0.05, abs=0.002)


def simulate(ratio, *, prompts=48, runs=400, shape=4.0, seed=0):
    """Synthetic prompts: gamma entropies around ``ratio * tau_H``, log-normal lengths.

    Returns (share decided above, share decided below, mean share of samples used).
    """
    rng = np.random.default_rng(seed)
    sizes = [int(fraction * prompts) for fraction in FRACTIONS if int(fraction * prompts) >= 8]
    levels = bounds(tuple(size / prompts for size in sizes), ALPHA)
    decisions, used = [], []
    for _ in range(runs):
        tokens = 8 * rng.lognormal(3.0, 0.4, prompts)
        entropies = rng.gamma(shape, 1.0 / shape, prompts) * ratio * TAU_H * tokens
        for size, level in zip(sizes, levels, strict=True):
            found = look(entropies[:size], tokens[:size], TAU_H, bound=level)
            if found.decision != "undecided":
                break
        decisions.append(found.decision)
        used.append(size / prompts)
    return decisions.count("above") / runs, decisions.count("below") / runs, float(np.mean(used))


@pytest.mark.parametrize("shape", [4.0, 1.5])
@pytest.mark.parametrize("prompts", [24, 48, 96])
def test_a_borderline_case_is_not_decided_wrongly(prompts, shape):
    above, below, _ = simulate(1.0, prompts=prompts, shape=shape)
    print(f"\n{prompts} prompts, shape {shape}: at tau_H above {above:.4f} below {below:.4f}")
    assert above + below <= 0.05
    _, wrong, _ = simulate(1.05, prompts=prompts, shape=shape)
    assert wrong <= 0.05
    wrong, _, _ = simulate(0.95, prompts=prompts, shape=shape)
    assert wrong <= 0.05


@pytest.mark.parametrize(("ratio", "side"), [(2.5, 0), (0.35, 1)])
@pytest.mark.parametrize("prompts", [24, 48, 96])
def test_a_clear_case_takes_few_samples(ratio, side, prompts):
    found = simulate(ratio, prompts=prompts)
    print(f"\n{prompts} prompts, entropy {ratio} tau_H: used {found[2]:.3f} of the samples")
    assert found[2] <= 0.40
    assert found[side] == 1.0


def test_no_spread():
    assert look([0.0, 0.0], [5.0, 5.0], TAU_H, bound=2.0).decision == "below"
    assert look([5.0, 5.0], [5.0, 5.0], TAU_H, bound=2.0) == (1.0, 1.0, 1.0, "above")


def test_bad_input():
    with pytest.raises(ValueError, match="error rate"):
        bounds((0.5, 1.0), 5.0)
    for fractions in ((), (0.5, 0.5), (0.5, 1.2), (0.0, 1.0)):
        with pytest.raises(ValueError, match="increasing fractions"):
            bounds(fractions, 0.05)
    with pytest.raises(ValueError, match="two or more prompts"):
        look([1.0], [1.0], TAU_H, bound=2.0)
