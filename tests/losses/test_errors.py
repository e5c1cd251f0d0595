"""Bad input gets a ValueError that says what was given and what is allowed, before compute."""

import pytest
import torch

from entropyfloor_losses import (
    LOSS_NAMES,
    AnchoredLoss,
    BoundedProbabilityLoss,
    CoverageLoss,
    CrossEntropyLoss,
    EntropyAdaptiveLoss,
    EntropyBonusLoss,
    EntropyTerm,
    GEMLoss,
    GibbsLoss,
    PenalisedLoss,
    PowerLoss,
    ProximalLoss,
    SelectiveEntropyLoss,
    StatisticsRequest,
    TailLoss,
    TokenStatistics,
    linear_loss,
    linear_token_statistics,
    loss_by_name,
    loss_options,
    token_statistics,
)

HIDDEN, WEIGHT = torch.randn(3, 4), torch.randn(11, 4)
LABELS = torch.tensor([0, 5, 10])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: SelectiveEntropyLoss(lam=-1.0), r"lam is -1\.0.*>= 0"),
        (lambda: SelectiveEntropyLoss(lam=float("nan")), "lam is nan"),
        (lambda: SelectiveEntropyLoss(tau=0.0), r"tau is 0\.0.*\(0, 1\]"),
        (lambda: SelectiveEntropyLoss(tau=1.5), r"tau is 1\.5"),
        (lambda: SelectiveEntropyLoss(tau="none"), "tau is 'none'"),
        (lambda: SelectiveEntropyLoss(top_k=0), "top_k is 0"),
        (lambda: SelectiveEntropyLoss(quantile=1.0), r"quantile is 1\.0"),
        (lambda: EntropyBonusLoss(lam=-0.1), r"lam is -0\.1"),
        (lambda: EntropyBonusLoss(selective=True, tau=-1.0), r"tau is -1\.0"),
        (lambda: BoundedProbabilityLoss(tau=-0.1), r"tau is -0\.1"),
        (lambda: GEMLoss(beta=0.0), r"beta is 0\.0"),
        (lambda: CrossEntropyLoss(smoothing=1.0), r"smoothing is 1\.0"),
        (lambda: EntropyAdaptiveLoss(alpha=-1.0), r"alpha is -1\.0; it must be .* >= 0"),
        (lambda: EntropyAdaptiveLoss(top_k=1), "top_k_entropy is 1"),
        (lambda: EntropyAdaptiveLoss(normaliser=0.0), r"normaliser is 0\.0"),
        (lambda: PowerLoss(alpha="1"), "alpha is '1'"),
        (lambda: GibbsLoss(beta=float("inf")), "beta is inf"),
        (lambda: AnchoredLoss(lam=-0.1), r"lam is -0\.1"),
        (lambda: ProximalLoss(epsilon_high=0.0), r"epsilon_high is 0\.0"),
        (lambda: ProximalLoss(refresh_steps=0), "refresh_steps is 0"),
        (lambda: CoverageLoss(group_size=0), "group_size is 0"),
        (lambda: TailLoss(drop_fraction=1.0), r"drop_fraction is 1\.0.*\[0, 1\)"),
        # Numbers that a YAML file has as text.
        (lambda: SelectiveEntropyLoss(lam="1"), r"lam is '1'; it must be a finite number >= 0"),
        (lambda: SelectiveEntropyLoss(quantile="0.3"), r"quantile is '0\.3'"),
        (lambda: BoundedProbabilityLoss(tau="0.5"), r"tau is '0\.5'; it must be >= 0"),
        (lambda: CrossEntropyLoss(smoothing="0.1"), r"smoothing is '0\.1'"),
        (lambda: TailLoss(drop_fraction="0.5"), r"drop_fraction is '0\.5'"),
        (lambda: StatisticsRequest(top_k=2.0), r"top_k is 2\.0"),
        (lambda: loss_by_name("sde"), "unknown loss 'sde'; choose one of ce, sed"),
        (lambda: loss_by_name("ce", lam=1.0), "'ce' does not take 'lam'; it takes smoothing"),
        (lambda: loss_by_name("entropy_bonus", tau=0.5), "does not take 'tau'"),
    ],
)
def test_hyper_parameters(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([0, 5, 11]), r"1 label\(s\) are out of range, the first is 11.*\[0, 11\)"),
        (torch.tensor([0, -1, 10]), "the first is -1"),
        (torch.tensor([0, 5, 10], dtype=torch.int32), "torch.int32"),
        (torch.tensor([0, 5]), "shape"),
    ],
)
def test_labels(labels, message):
    with pytest.raises(ValueError, match=message):
        token_statistics(HIDDEN @ WEIGHT.T, labels)
    with pytest.raises(ValueError, match=message):
        linear_loss(HIDDEN, WEIGHT, labels, CrossEntropyLoss())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 12}, "top_k is 12, more than the vocabulary of 11"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"softcap": -1.0}, "softcap is -1.0"),
        ({"logit_scale": 0.0}, "logit_scale is 0.0"),
    ],
)
def test_options(options, message):
    with pytest.raises(ValueError, match=message):
        token_statistics(HIDDEN @ WEIGHT.T, LABELS, **options)
    with pytest.raises(ValueError, match=message):
        linear_token_statistics(HIDDEN, WEIGHT, LABELS, **options)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((HIDDEN, torch.randn(11, 5)), {}, "hidden has shape"),
        ((HIDDEN, WEIGHT), {"bias": torch.randn(5)}, r"bias has shape \(5,\)"),
        ((HIDDEN, WEIGHT.double()), {}, "cast one of them"),
        ((HIDDEN, WEIGHT), {"chunk_size": 0}, "chunk_size is 0"),
        ((HIDDEN.long(), WEIGHT.long()), {}, "floating dtype"),
    ],
)
def test_head(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        linear_loss(*arguments, LABELS, CrossEntropyLoss(), **options)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nonfinite_logits(bad):
    hidden = HIDDEN.clone()
    hidden[1, 2] = bad
    with pytest.raises(ValueError, match="NaN or \\+inf"):
        linear_loss(hidden, WEIGHT, LABELS, CrossEntropyLoss())
    with pytest.raises(ValueError, match="NaN or \\+inf"):
        token_statistics(hidden @ WEIGHT.T, LABELS)
    ignored = torch.tensor([0, -100, 10])
    linear_loss(hidden, WEIGHT, ignored, CrossEntropyLoss())
    token_statistics(hidden @ WEIGHT.T, ignored)


def test_a_loss_that_reduces_is_refused():
    with pytest.raises(ValueError, match="one value per token"):
        linear_loss(HIDDEN, WEIGHT, LABELS, lambda s: -s.log_prob.mean())


def test_uncalibrated_tau():
    with pytest.raises(ValueError, match="has not been calibrated"):
        linear_loss(HIDDEN, WEIGHT, LABELS, SelectiveEntropyLoss())


@pytest.mark.parametrize(
    ("loss", "statistic"),
    [
        (GEMLoss(), "tempered_log_prob"),
        (CrossEntropyLoss(smoothing=0.1), "mean_log_prob"),
        (EntropyTerm("anchor"), "reference_kl"),
        (PenalisedLoss(CrossEntropyLoss(), EntropyTerm("onset_anchor"), 1.0), "reference_kl"),
        (lambda statistics: statistics.top_k_entropy, "top_k_entropy"),
    ],
)
def test_a_statistic_that_was_not_asked_for(loss, statistic):
    message = f"'{statistic}' was not computed.*request=loss.request"
    for statistics in (
        token_statistics(HIDDEN @ WEIGHT.T, LABELS),
        linear_token_statistics(HIDDEN, WEIGHT, LABELS),
    ):
        assert statistics.get(statistic) is None
        with pytest.raises(ValueError, match=message):
            loss(statistics)


@pytest.mark.parametrize("name", LOSS_NAMES)
def test_every_loss_runs_on_what_it_asks_for_and_says_what_is_missing(name):
    known = loss_options(name)
    options = {"tau": 0.9} if known.get("tau") == "auto" else {}
    options |= {"top_k": 5} if known.get("top_k", 0) > len(WEIGHT) else {}
    loss = loss_by_name(name, **options)
    full = token_statistics(
        HIDDEN @ WEIGHT.T,
        LABELS,
        request=loss.request,
        reference_logits=HIDDEN @ WEIGHT.T if loss.request.needs_reference else None,
        advantages=torch.ones(len(LABELS)),
    )
    assert loss(full).shape == LABELS.shape
    empty = TokenStatistics(scored=full.scored)
    missing = r"was not computed.*StatisticsRequest\(|pass advantages=.*sequence_weights"
    with pytest.raises(ValueError, match=missing):
        loss(empty)


def test_unknown_names():
    with pytest.raises(ValueError, match=r"no statistic has the option 'topk'; they are .*top_k"):
        StatisticsRequest(topk=3)
    with pytest.raises(ValueError, match="'entrpy' is no statistic"):
        TokenStatistics(scored=LABELS > 0, entrpy=LABELS)
    with pytest.raises(AttributeError, match="entrpy"):
        _ = token_statistics(HIDDEN @ WEIGHT.T, LABELS).entrpy
