"""CollapseMonitor inside trl's GRPOTrainer: what it counts, reads, logs and does."""

import json
import logging

import pytest
import torch
from grpo_runs import Recorder, grpo, prompt_rows, records, settings, steps_of
from safetensors.torch import load_file
from trl import GRPOTrainer

from entropyfloor.rl.collapse_monitor import CollapseMonitor
from entropyfloor.rl.collapse_rule import CollapseRule
from entropyfloor.rl.group_counts import GroupCounts
from entropyfloor.rl.restore import Restorer
from tiny_models import tiny_model, tiny_tokenizer


def by_hand(calls, group_size):
    """(groups, all wrong, all right, passed) of a recorder's calls: same prompts side by side."""
    groups = wrong = right = passed = 0
    for call in calls:
        for start in range(0, len(call), group_size):
            group = call[start : start + group_size]
            assert len({prompt for prompt, _ in group}) == 1
            rewards = [reward for _, reward in group]
            groups += 1
            wrong += rewards == [0.0] * group_size
            right += rewards == [1.0] * group_size
            passed += sum(rewards)
    return groups, wrong, right, passed


def assert_counts(monitor, calls):
    """The monitor has counted what the rewards were asked about."""
    counts = monitor.counts
    counted = (counts.groups, counts.all_wrong, counts.all_right, counts.passed)
    assert counted == by_hand(calls, 4) and counts.groups > 0


CASES = {
    "reused": {"num_iterations": 2, "max_steps": 5},
    "reused and accumulated": {"num_iterations": 2, "gradient_accumulation_steps": 2},
    "two steps per generation": {"steps_per_generation": 4, "gradient_accumulation_steps": 2},
    "small micro-batches": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
    "normalised first": {"multi_objective_aggregation": "normalize_then_sum"},
}


@pytest.mark.parametrize("case", CASES)
def test_groups_are_counted_as_by_hand(case, tmp_path):
    recorder, monitor = Recorder(), CollapseMonitor("warn")
    trainer = grpo(tmp_path, rewards=recorder, callbacks=[monitor], **CASES[case])
    trainer.train()
    assert_counts(monitor, recorder.calls)
    steps = steps_of(tmp_path)
    assert [record["step"] for record in steps] == list(range(1, trainer.state.max_steps + 1))
    assert sum(record["groups"] for record in steps) == monitor.counts.groups
    # Generations are used num_iterations times, and one may last several steps.
    reuse = trainer.args.num_iterations * trainer.args.steps_per_generation
    reuse //= trainer.args.gradient_accumulation_steps
    assert sum(record["groups"] > 0 for record in steps) == -(-trainer.state.max_steps // reuse)


def test_where_trls_own_fraction_is_wrong(tmp_path):
    """Batch scaling: trl tests the batch's deviation, which is not zero while groups are."""
    recorder, monitor = Recorder(), CollapseMonitor("warn")
    trainer = grpo(tmp_path, rewards=recorder, callbacks=[monitor], scale_rewards="batch")
    trainer.train()
    assert_counts(monitor, recorder.calls)
    _, wrong, right, _ = by_hand(recorder.calls, 4)
    assert wrong + right > 0
    logged = [log for log in trainer.state.log_history if "groups/degenerate_fraction" in log]
    ours = sum(log["groups/degenerate_fraction"] * 2 for log in logged)
    theirs = sum(log["frac_reward_zero_std"] * 2 for log in logged)
    assert ours == wrong + right
    assert theirs != ours


class Summing(GRPOTrainer):
    """Keeps entropy sums and token counts of every training micro-batch, in float64."""

    def __init__(self, *arguments, **keywords):
        self.sums = {}
        super().__init__(*arguments, **keywords)

    def _compute_loss(self, model, inputs):
        self.mask = inputs["completion_mask"]
        return super()._compute_loss(model, inputs)

    def _get_per_token_logps_and_entropies(self, *arguments, compute_entropy=False, **keywords):
        result = super()._get_per_token_logps_and_entropies(
            *arguments, compute_entropy=compute_entropy, **keywords
        )
        if compute_entropy and self.model.training:
            total = float((result[1].detach().double() * self.mask).sum())
            pair = self.sums.setdefault(self.state.global_step + 1, [0.0, 0.0])
            pair[0] += total
            pair[1] += float(self.mask.sum())
        return result


@pytest.mark.parametrize("logging_steps", [1, 3])
def test_entropy_of_every_step_is_the_mean_over_its_tokens(tmp_path, logging_steps):
    monitor = CollapseMonitor("warn")
    trainer = grpo(
        tmp_path,
        trainer=Summing,
        callbacks=[monitor],
        per_device_train_batch_size=2,
        gradient_accumulation_steps=4,
        logging_steps=logging_steps,
        model=tiny_model(),
        max_completion_length=12,
    )
    with torch.no_grad():  # end-of-sequence early and at random: unequal token counts
        trainer.model.lm_head.weight[1] += 0.4
    trainer.train()
    steps = steps_of(tmp_path)
    assert len({pair[1] for pair in trainer.sums.values()}) > 1
    for record in steps:
        total, tokens = trainer.sums[record["step"]]
        assert record["entropy_nats"] == pytest.approx(total / tokens, rel=1e-5)
        assert record["temperature"] == 1.0


def test_it_changes_nothing_and_leaves_no_trace(tmp_path):
    plain = grpo(tmp_path / "plain")
    plain.train()
    watched = grpo(tmp_path / "watched", callbacks=[CollapseMonitor("warn")])
    watched.train()
    for mine, other in zip(watched.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(mine, other)
    for name in ("_calculate_rewards", "compute_loss"):
        assert name not in vars(watched)
    ours = {"groups/pass_rate", "groups/degenerate_all_wrong", "collapse/relative_drop"}
    logged = set().union(*watched.state.log_history)
    assert ours <= logged
    assert not ours & set().union(*plain.state.log_history)


def test_evaluation_is_not_counted(tmp_path):
    recorder, monitor = Recorder(), CollapseMonitor("warn")
    trainer = grpo(
        tmp_path,
        rewards=recorder,
        callbacks=[monitor],
        eval_strategy="steps",
        eval_steps=2,
        per_device_eval_batch_size=8,
        eval_dataset=prompt_rows(4),
    )
    trainer.train()
    assert len(recorder.calls) > 4
    assert monitor.counts.groups == 8
    assert len(steps_of(tmp_path)) == 4


class Scripted(GRPOTrainer):
    """Its entropies are a recorded curve: what trl appends is replaced, step by step."""

    curve = ()

    def _compute_loss(self, model, inputs):
        loss = super()._compute_loss(model, inputs)
        if self.model.training:
            self._metrics["train"]["entropy"][-1] = self.curve[self.state.global_step]
        return loss


def scripted(values):
    return type("Scripted", (Scripted,), {"curve": tuple(values)})


FALLING = [0.5, 0.5, 0.45, 0.4, 0.3, 0.18, 0.15, 0.1, 0.05, 0.05]
SLOWLY = [0.5, 0.5, 0.48, 0.45, 0.42, 0.38, 0.3, 0.1, 0.05, 0.05]
WATCH = {"early_step": 2, "late_step": 6}


def run(folder, curve, policy, monitor=None, **changes):
    monitor = monitor or CollapseMonitor(policy, **WATCH)
    options = {"max_steps": 10, "max_completion_length": 3, **changes}
    trainer = grpo(folder, trainer=scripted(curve), callbacks=[monitor], **options)
    return trainer, monitor


@pytest.mark.pictures
def test_stop(tmp_path, caplog):
    trainer, monitor = run(
        tmp_path, FALLING, "stop", save_strategy="steps", save_steps=4, save_total_limit=2
    )
    trainer.train()
    assert trainer.state.global_step == monitor.stopped_at == 6
    assert monitor.decision.verdict == "collapsed"
    assert monitor.decision.drop == pytest.approx(0.64)
    assert monitor.message == (
        "Stopped at step 6 of 10, which saved 40.0% of the run: entropy fell 64.0% from 0.5 nats "
        "at step 2 to 0.18 at step 6, more than tau_2 = 50%."
    )
    assert monitor.message in caplog.text
    assert (tmp_path / "checkpoint-6").is_dir()
    assert (tmp_path / "collapse_monitor.png").stat().st_size > 10_000
    verdict = records(tmp_path)[-1]
    assert verdict["event"] == "verdict"
    assert verdict["stopped"] is True
    assert verdict["saved_share"] == pytest.approx(0.4)


def test_a_run_of_which_nothing_was_scored_is_not_called_healthy(tmp_path):
    def unscored(prompts, **_):
        return [None] * len(prompts)

    trainer, monitor = run(tmp_path, SLOWLY, "stop", rewards=unscored)
    trainer.train()
    assert monitor.counts.groups == 0 and monitor.counts.unscored > 0
    assert monitor.decision.verdict == "unknown"
    assert "cannot tell: no rollout of" in monitor.message


LOW = [0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.09, 0.09, 0.09, 0.09]
HOLES = [0.5, float("nan"), 0.48, 0.4, 0.3, float("nan"), 0.18, 0.1, 0.1, 0.1]


def never(prompts, **_):
    return [0.0] * len(prompts)


def half(prompts, **_):
    return [float(index % 2) for index in range(len(prompts))]


# curve, reward, options of the monitor, verdict, step it stops at, early and late reading, words
OUTCOMES = {
    "healthy": (SLOWLY, None, {}, "healthy", None, (2, 0.5), (6, 0.38),
        ["Step 6 of 10, healthy: entropy fell 24.0%"]),
    "only warned": (FALLING, None, {"policy": "warn"}, "collapsed", None, (2, 0.5), (6, 0.18),
        ["Step 6 of 10, collapsed"]),
    "began collapsed": (LOW, never, {}, "collapsed", 6, (2, 0.1), (6, 0.1), [
        "it began collapsed: entropy was 0.1 nats at step 2, below tau_H",
        "100% of the groups since then agree",
    ]),
    "rule off": (LOW, never, {"tau_h": None}, "healthy", None, (2, 0.1), (6, 0.1), []),
    "entropy above tau_H": ([5 * h for h in LOW], never, {}, "healthy", None, (2, 0.5), (6, 0.5),
        []),
    "little entropy, but groups teach": (LOW, half, {}, "healthy", None, (2, 0.1), (6, 0.1), []),
    "NaN is a hole": (HOLES, None, {}, "collapsed", 7, (3, 0.48), (7, 0.18), ["at step 7"]),
}  # fmt: skip


@pytest.mark.parametrize("case", OUTCOMES)
def test_outcomes(tmp_path, caplog, case):
    """A run that is stopped ends there, any other goes on to the end, and both say why."""
    curve, reward, options, verdict, stops, early, late, words = OUTCOMES[case]
    caplog.set_level(logging.INFO)
    monitor = CollapseMonitor(**WATCH, **options)
    trainer, _ = run(
        tmp_path, curve, "", monitor, **({} if reward is None else {"rewards": reward})
    )
    trainer.train()
    assert monitor.decision.verdict == verdict
    assert monitor.decision.early == (early[0], pytest.approx(early[1]))
    assert monitor.decision.late == (late[0], pytest.approx(late[1]))
    assert monitor.stopped_at == stops
    assert trainer.state.global_step == (stops or 10)
    assert all(part in monitor.message for part in words) and monitor.message in caplog.text
    entropies = [record["entropy_nats"] for record in steps_of(tmp_path)]
    expected = [None if h != h else pytest.approx(h) for h in curve]
    assert entropies == expected[: stops or 10]


# Half of 0.5 is passed between steps 4 and 5, so checkpoint 4 is the last from before.
HALVED = [0.5, 0.5, 0.45, 0.4, 0.2, 0.18, 0.1, 0.1, 0.1, 0.1]


def weights_of(folder, name="model.safetensors"):
    return load_file(folder / name)


@pytest.mark.parametrize("limit", [None, 1])
def test_restore_takes_the_last_checkpoint_from_before(tmp_path, limit):
    saving = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": limit}
    trainer, monitor = run(tmp_path, HALVED, "stop-and-restore", **saving)
    trainer.train()
    assert trainer.state.global_step == 6
    chosen = tmp_path / "checkpoint-4"
    assert monitor.memory.restored == str(chosen)
    assert f"restored the weights of {chosen}" in monitor.message
    stored = weights_of(chosen)
    now = trainer.model.state_dict()
    assert all(torch.equal(now[name], stored[name]) for name in stored)
    assert trainer.args.load_best_model_at_end is False
    if limit is None:
        last = weights_of(tmp_path / "checkpoint-6")
        assert not all(torch.equal(now[name], last[name]) for name in last)


def test_restore_of_an_adapter(tmp_path):
    """LoRA: only the adapter is saved, and only it is restored."""
    from peft import LoraConfig

    adapter = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    saving = {"save_strategy": "steps", "save_steps": 1}
    trainer, monitor = run(
        tmp_path, HALVED, "stop-and-restore", peft_config=adapter, learning_rate=1e-2, **saving
    )
    trainer.train()
    assert monitor.memory.restored == str(tmp_path / "checkpoint-4")
    now = {
        name.replace(".default", ""): weight for name, weight in trainer.model.named_parameters()
    }
    stored, last = (
        weights_of(tmp_path / f"checkpoint-{step}", "adapter_model.safetensors") for step in (4, 6)
    )
    assert stored and all(torch.equal(now[name], stored[name]) for name in stored)
    assert not all(torch.equal(now[name], last[name]) for name in last)


def test_restore_without_a_checkpoint_from_before(tmp_path):
    curve = [0.5, 0.5, 0.2, 0.2, 0.2, 0.2, 0.1, 0.1, 0.1, 0.1]
    trainer, monitor = run(tmp_path, curve, "stop-and-restore", save_strategy="steps", save_steps=5)
    trainer.train()
    assert monitor.memory.restored is None
    assert "restored nothing: no checkpoint from before the collapse" in monitor.message


@pytest.mark.parametrize(
    "saving", [{"save_strategy": "no"}, {"save_strategy": "steps", "save_steps": 6}]
)
def test_restore_refuses_a_run_that_saves_too_late(tmp_path, saving):
    trainer, _ = run(tmp_path, FALLING, "stop-and-restore", **saving)
    with pytest.raises(ValueError, match="needs a checkpoint from before step 6"):
        trainer.train()
    assert "_calculate_rewards" not in vars(trainer)


def test_restore_refuses_sharded_runs_without_what_their_loader_needs(tmp_path, monkeypatch):
    from accelerate.state import AcceleratorState
    from accelerate.utils import DistributedType

    saving = {"save_strategy": "steps", "save_steps": 1, "save_only_model": True}
    trainer, _ = run(tmp_path, FALLING, "stop-and-restore", **saving)
    fsdp = property(lambda self: DistributedType.FSDP)
    monkeypatch.setattr(AcceleratorState, "distributed_type", fsdp, raising=False)
    rule, args = CollapseRule.for_run(10, **WATCH), trainer.args
    with pytest.raises(ValueError, match="save_only_model=True leaves nothing"):
        Restorer.check(args, rule)
    args.save_only_model = False
    Restorer.check(args, rule)


def test_a_healthy_run_gives_its_checkpoints_to_rotation(tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 1}
    trainer, _ = run(tmp_path, SLOWLY, "stop-and-restore", **saving)
    trainer.train()
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-10"]


def test_resumed_run_decides_as_if_it_had_not_been_stopped(tmp_path):
    recorder = Recorder()
    saving = {"save_strategy": "steps", "save_steps": 3, "max_steps": 10}
    first, _ = run(tmp_path, FALLING, "stop", rewards=recorder, **saving)
    first.args.max_steps = 10
    first.add_callback(StopAfter(4))
    first.train()
    assert first.state.global_step == 4  # one step past the checkpoint, which is done again
    seen = len(recorder.calls)

    second, resumed = run(tmp_path, FALLING, "stop", rewards=recorder, **saving)
    second.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert resumed.stopped_at == 6
    assert resumed.decision.early == (2, pytest.approx(0.5))
    assert [r["step"] for r in steps_of(tmp_path)] == [1, 2, 3, 4, 5, 6]
    assert_counts(resumed, recorder.calls[:3] + recorder.calls[seen:])

    third, _ = run(tmp_path, FALLING, "stop", **saving)
    with pytest.raises(ValueError, match="where a run was stopped"):
        third.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    fourth, warned = run(tmp_path, FALLING, "warn", **saving)
    fourth.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert fourth.state.global_step == 10
    assert warned.decision.verdict == "collapsed"


def StopAfter(step):
    from transformers import TrainerCallback

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            control.should_training_stop |= state.global_step == step

    return Stop()


def test_a_run_that_began_unwatched_can_be_resumed_watched(tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 2}
    grpo(tmp_path, **saving).train()
    monitor = CollapseMonitor("warn")
    trainer = grpo(tmp_path, callbacks=[monitor], max_steps=6, save_steps=2, save_strategy="steps")
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert [r["step"] for r in steps_of(tmp_path)] == [3, 4, 5, 6]
    assert trainer.state.global_step == 6


def test_transformers_own_restoring_of_callbacks(tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 2, "save_only_model": False}
    first, _ = run(tmp_path, FALLING, "stop", **saving)
    first.add_callback(StopAfter(4))
    first.train()
    second, _ = run(
        tmp_path, FALLING, "stop", restore_callback_states_from_checkpoint=True, **saving
    )
    second.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert second.state.global_step == 6
    kept = next(c for c in second.callback_handler.callbacks if isinstance(c, CollapseMonitor))
    assert kept.stopped_at == 6
    assert kept.early_step == 2


def test_temperature_is_kept_beside_the_entropies(tmp_path, caplog):
    trainer, monitor = run(
        tmp_path, FALLING, "stop", temperature=0.7, save_strategy="steps", save_steps=3
    )
    trainer.train()
    assert "sampling temperature 0.7" in caplog.text
    assert monitor.message.endswith("(entropies at temperature 0.7; tau_2 was found at 1).")
    assert {r["temperature"] for r in steps_of(tmp_path)} == {0.7}
    # Resumed at another temperature: entropies at the two are never compared.
    second, other = run(tmp_path, FALLING, "stop", save_strategy="steps", save_steps=3)
    second.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert "resumed at sampling temperature 1.0 after 0.7" in caplog.text
    assert other.decision.verdict == "unknown"
    assert second.state.global_step == 10


def test_gradients_from_shaped_rewards_alone_are_said_once(tmp_path, caplog):
    def length(completions, **_):
        return [0.001 * i for i in range(len(completions))]  # all differ, and none passes

    monitor = CollapseMonitor("warn")
    trainer = grpo(tmp_path, rewards=length, callbacks=[monitor], max_steps=12)
    trainer.train()
    counts = monitor.counts
    assert counts.outcome_degenerate == counts.groups >= 20
    assert caplog.text.count("groups with a gradient all pass or all fail") == 1
    assert monitor.memory.warned_of_shaping
    assert {r["outcome_degenerate_fraction"] for r in steps_of(tmp_path)} == {1.0}
    assert "groups/outcome_degenerate_fraction" in trainer.state.log_history[0]


def test_without_a_probe_the_logs_are_read(tmp_path, caplog, monkeypatch):
    import entropyfloor.rl.collapse_monitor as module

    monkeypatch.setattr(module, "can_probe", lambda trainer: False)
    monitor = CollapseMonitor("stop", early_step=2, late_step=6)
    trainer, _ = run(tmp_path, FALLING, "stop", monitor=monitor, logging_steps=2)
    trainer.train()
    assert "found no GRPOTrainer" in caplog.text
    # Logged every second step, as means over two: 0.5, 0.425, 0.24 at steps 2, 4, 6.
    assert monitor.decision.early == (2, pytest.approx(0.5))
    assert monitor.decision.late == (6, pytest.approx(0.24))
    assert monitor.stopped_at == 6
    assert records(tmp_path)[0]["entropy_from"] == "logs"
    assert monitor.counts == GroupCounts()


def test_several_reward_functions(tmp_path):
    def second(completions, **_):
        return [None] * len(completions)

    recorder = Recorder()
    monitor = CollapseMonitor("warn", success_reward="first_byte")
    trainer = grpo(
        tmp_path,
        rewards=[second, recorder],
        callbacks=[monitor],
        reward_weights=[1.0, 0.5],
    )
    trainer.train()
    assert_counts(monitor, recorder.calls)
    assert records(tmp_path)[0]["success_reward"] == "first_byte"
    wrong = grpo(tmp_path, callbacks=[CollapseMonitor(success_reward="exact")])
    with pytest.raises(ValueError, match="none of the trainer's reward functions: first_byte"):
        wrong.train()


def test_coroutine_rewards(tmp_path):
    recorder = Recorder()

    async def later(**keywords):
        return recorder(**keywords)

    monitor = CollapseMonitor("warn")
    grpo(tmp_path, rewards=later, callbacks=[monitor]).train()
    assert_counts(monitor, recorder.calls)


def test_rloo_has_the_same_parts(tmp_path):
    from trl import RLOOConfig, RLOOTrainer

    recorder, monitor = Recorder(), CollapseMonitor("warn")
    config = RLOOConfig(
        str(tmp_path),
        beta=0.0,
        per_device_train_batch_size=8,
        num_generations=4,
        max_completion_length=6,
        max_steps=3,
        use_cpu=True,
        bf16=False,
        report_to="none",
        save_strategy="no",
    )
    RLOOTrainer(
        model=tiny_model(),
        reward_funcs=recorder,
        args=config,
        train_dataset=prompt_rows(),
        processing_class=tiny_tokenizer(),
        callbacks=[monitor],
    ).train()
    assert_counts(monitor, recorder.calls)
    assert monitor.decision.verdict == "healthy"


def test_two_monitors_are_refused(tmp_path):
    trainer = grpo(tmp_path, callbacks=[CollapseMonitor(), CollapseMonitor("warn")])
    with pytest.raises(ValueError, match="more than one CollapseMonitor"):
        trainer.train()


def test_state_is_json_and_comes_back():
    monitor = CollapseMonitor("stop", late_step=30, window=2)
    monitor.memory.read(1, 0.4)
    monitor.memory.read(2, float("nan"))
    monitor.memory.counts = GroupCounts(groups=3, reward_sum=1.5)
    kept = json.loads(json.dumps(monitor.state()))
    again = CollapseMonitor.from_state(kept)
    assert again.memory == monitor.memory
    assert again.memory.readings == [(1, 0.4), (2, None)]
    assert (again.late_step, again.window, again.policy) == (30, 2, "stop")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"policy": "restore"}, "unknown policy 'restore'"),
        ({"tau_2": 2.0}, "between 0 and 1"),
        ({"early_step": 5, "late_step": 5}, "early_step < late_step"),
        ({"window": 0}, "1 or more"),
    ],
)
def test_refusals(options, words):
    with pytest.raises(ValueError, match=words):
        CollapseMonitor(**options)


def test_from_a_path(tmp_path, save_checkpoint):
    """The one line of the documentation, with a model that trl loads itself."""
    trainer = GRPOTrainer(
        str(save_checkpoint()),
        reward_funcs=Recorder(),
        args=settings(tmp_path / "run", max_steps=2),
        train_dataset=grpo(tmp_path / "other").train_dataset,
        callbacks=[CollapseMonitor()],
    )
    logging.getLogger("entropyfloor").setLevel(logging.INFO)
    trainer.train()
    assert len(steps_of(tmp_path / "run")) == 2
