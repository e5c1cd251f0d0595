"""Each loss trains on what its definition says: full logits, reference statistics, plain mean."""

from functools import partial

import pytest
import torch
from sft_runs import Run, arguments, build, prompt_completion_rows, sed_trainer
from torch import Tensor

from entropyfloor import SEDConfig, SEDTrainer
from entropyfloor_losses import (
    GEMLoss,
    SelectiveEntropyLoss,
    StatisticsRequest,
    TokenStatistics,
    token_statistics,
)
from tiny_models import tiny_model

ROWS = 12


def one_batch(trainer):
    """All rows in one batch, as the model gets them."""
    return trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))


def reference(trainer, loss):
    """Mean loss per scored token from the initial model's own logits, and its statistics."""
    model = tiny_model()
    inputs = one_batch(trainer)
    with torch.no_grad():
        logits = model(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]
        ).logits
    request = getattr(loss, "request", StatisticsRequest())
    statistics = token_statistics(logits[:, :-1], inputs["labels"][:, 1:], request=request)
    return loss(statistics).sum() / statistics.scored.sum(), statistics


def whole_batch_trainer(tmp_path, **config):
    trainer = config.pop("trainer", {})
    return sed_trainer(
        tmp_path,
        trainer={"train_dataset": prompt_completion_rows(ROWS), **trainer},
        per_device_train_batch_size=ROWS,
        max_steps=2,
        **config,
    )


CASES = [
    {"loss": "ce"},
    {"loss": "ce", "smoothing": 0.2},
    {"loss": "sed", "lam": 2.0, "tau": 0.02},
    {"loss": "sed", "lam": 0.5, "top_k": 5, "tau": 1.0},
    {"loss": "dcr", "tau": 0.004},
    {"loss": "dft"},
    {"loss": "gem", "beta": 0.7},
    {"loss": "entropy_bonus", "lam": 0.3},
    {"loss": "selective_entropy_bonus", "lam": 0.3, "tau": 0.02},
]


@pytest.mark.parametrize("config", CASES, ids=lambda c: "-".join(map(str, c.values())))
def test_first_step(tmp_path, config):
    trainer = whole_batch_trainer(tmp_path, **config)
    value, statistics = reference(trainer, trainer.loss)
    tokens = statistics.scored.sum()
    first = Run.of(trainer).steps[0]
    ce = -statistics.log_prob.sum() / tokens
    assert first["loss"] == pytest.approx(float(value), rel=1e-6)
    assert first["ce"] == pytest.approx(float(ce), rel=1e-6)
    assert first["penalty"] == pytest.approx(float(value - ce), abs=2e-6)
    assert first["entropy"] == pytest.approx(float(statistics.entropy.sum() / tokens), rel=1e-5)
    assert first["top_k_mass"] == pytest.approx(float(statistics.top_k_mass.sum() / tokens), 1e-5)
    selected = trainer.loss.selected(statistics).sum() / tokens
    assert first["selected_fraction"] == pytest.approx(float(selected), abs=1e-6)


def test_thresholds_of_the_cases_divide_the_tokens(tmp_path):
    """A mask that is everywhere 0 or 1 would prove nothing."""
    for config in (CASES[2], CASES[4], CASES[8]):
        trainer = whole_batch_trainer(tmp_path, **config)
        _, statistics = reference(trainer, trainer.loss)
        share = trainer.loss.selected(statistics).sum() / statistics.scored.sum()
        assert 0.1 < share < 0.9


@pytest.mark.parametrize("config", CASES[1:], ids=lambda c: "-".join(map(str, c.values())))
def test_the_loss_moves_the_weights(tmp_path, config):
    """Weights after two steps differ from cross-entropy's (test_loss_head.py checks gradients)."""
    ours = Run.of(whole_batch_trainer(tmp_path, **config)).weights
    ce = Run.of(whole_batch_trainer(tmp_path, loss="ce")).weights
    assert any((ours[name] - ce[name]).abs().max() > 1e-6 for name in ce)


def doubled(statistics: TokenStatistics) -> Tensor:
    """A user's own loss: a plain function of the statistics."""
    return -2.0 * statistics.log_prob + 0.1 * statistics.entropy


class WithRequest:
    """A user's own loss as an object that asks for the mass of four tokens."""

    request = StatisticsRequest(top_k=4)

    def __call__(self, statistics: TokenStatistics) -> Tensor:
        return -statistics.log_prob * (statistics.top_k_mass < 0.04)


@pytest.mark.parametrize("loss", [doubled, WithRequest(), partial(doubled)])
def test_own_callable(tmp_path, loss):
    trainer = whole_batch_trainer(tmp_path, trainer={"loss": loss})
    value, statistics = reference(trainer, loss)
    first = Run.of(trainer).steps[0]
    assert first["loss"] == pytest.approx(float(value), rel=1e-6)
    assert first["selected_fraction"] == 1.0  # unknown, so every token counts
    ce = -statistics.log_prob.sum() / statistics.scored.sum()
    assert first["ce"] == pytest.approx(float(ce), rel=1e-6)


def test_object_in_config_or_in_trainer_or_by_name(tmp_path):
    runs = [
        whole_batch_trainer(tmp_path, loss=GEMLoss(beta=0.5)),
        whole_batch_trainer(tmp_path, trainer={"loss": GEMLoss(beta=0.5)}),
        whole_batch_trainer(tmp_path, loss="gem", beta=0.5),
        build(
            SEDTrainer,
            arguments(tmp_path, per_device_train_batch_size=ROWS, max_steps=2),
            train_dataset=prompt_completion_rows(ROWS),
            loss=GEMLoss(beta=0.5),
        ),
    ]
    first, *others = [Run.of(trainer).series("loss") for trainer in runs]
    assert all(other == first for other in others)


def test_sed_with_lam_zero_is_cross_entropy(tmp_path):
    zero = Run.of(whole_batch_trainer(tmp_path, loss="sed", lam=0.0, tau=0.5))
    assert zero.series("loss") == Run.of(whole_batch_trainer(tmp_path, loss="ce")).series("loss")


def test_metrics_are_weighted_by_tokens(tmp_path):
    """Micro-batches of unequal counts, accumulated, log what one batch of all rows logs."""
    config = {"loss": "sed", "tau": 0.02, "seed": 3}
    one = Run.of(whole_batch_trainer(tmp_path, **config))
    many = Run.of(
        sed_trainer(
            tmp_path,
            trainer={"train_dataset": prompt_completion_rows(ROWS)},
            per_device_train_batch_size=1,
            gradient_accumulation_steps=ROWS,
            max_steps=2,
            **config,
        )
    )
    for name in ("loss", "ce", "penalty", "selected_fraction", "top_k_mass"):
        assert many.series(name) == pytest.approx(one.series(name), rel=2e-5, abs=1e-6), name
    # Were it an average of averages, rows of different length would count alike, as trl's do:
    assert many.series("entropy") != pytest.approx(one.series("entropy"), rel=1e-5)


def test_metrics_cover_all_steps_since_the_last_log(tmp_path):
    """Learning rate 0: every step sees the same model, so two steps log the mean over both."""
    settings = {"loss": "sed", "tau": 0.02, "learning_rate": 0.0, "per_device_train_batch_size": 6}
    trainer = {"train_dataset": prompt_completion_rows(ROWS)}
    each = Run.of(sed_trainer(tmp_path, trainer=trainer, max_steps=2, **settings))
    both = Run.of(
        sed_trainer(tmp_path, trainer=trainer, max_steps=2, **{**settings, "logging_steps": 2})
    )
    whole = Run.of(
        sed_trainer(
            tmp_path,
            trainer=trainer,
            max_steps=1,
            **{**settings, "per_device_train_batch_size": ROWS},
        )
    )
    assert len(both.steps) == 1
    assert both.steps[0]["ce"] == pytest.approx(whole.steps[0]["ce"], rel=1e-6)
    assert each.steps[0]["ce"] != pytest.approx(each.steps[1]["ce"], rel=1e-3)


def test_evaluation_uses_the_loss(tmp_path):
    trainer = whole_batch_trainer(
        tmp_path,
        trainer={"eval_dataset": prompt_completion_rows(ROWS)},
        loss="sed",
        tau=0.02,
        per_device_eval_batch_size=ROWS,
    )
    value, _ = reference(trainer, trainer.loss)
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] == pytest.approx(float(value), rel=1e-6)
    logged = trainer.state.log_history[-1]
    assert logged["eval_ce"] + logged["eval_penalty"] == pytest.approx(float(value), rel=1e-6)


def test_default_is_sed(tmp_path):
    trainer = build(SEDTrainer, SEDConfig(str(tmp_path), use_cpu=True, report_to=[]))
    assert trainer.loss == SelectiveEntropyLoss()
