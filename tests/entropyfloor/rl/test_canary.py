"""What the probe relies on inside trl and transformers, in their source."""

import inspect

from transformers import Trainer
from trl import GRPOTrainer

from canary import canary, expressions


@canary
def test_rewards_end_in_one_method_gathered_over_ranks():
    code = expressions(GRPOTrainer._calculate_rewards)
    assert "gather(rewards_per_func)" in code
    source = inspect.getsource(GRPOTrainer._calculate_rewards).rstrip()
    assert source.endswith("return rewards_per_func"), "something is done after the gathering"
    calls = expressions(GRPOTrainer._generate_and_score_completions)
    called = [e for e in calls if e.startswith("self._calculate_rewards(")]
    assert called == ["self._calculate_rewards(inputs, prompts, completions, completion_ids_list)"]


@canary
def test_groups_lie_side_by_side():
    code = expressions(GRPOTrainer._generate_and_score_completions)
    assert "rewards.view(-1, num_generations)" in code
    assert "rewards_per_func * self.reward_weights.to(device).unsqueeze(0)" in code


@canary
def test_one_entropy_per_micro_batch_over_all_ranks():
    code = expressions(GRPOTrainer._compute_loss)
    appended = [e for e in code if e.startswith("self._metrics[mode]['entropy'].append(")]
    assert appended == ["self._metrics[mode]['entropy'].append(global_masked_mean(entropies))"]
    assert "completion_mask * inputs['tool_mask']" in code
    assert "self._compute_loss(model, inputs)" in expressions(GRPOTrainer.compute_loss)
    assert "'train' if self.model.training else 'eval'" in code


@canary
def test_metrics_are_averaged_and_logged():
    code = expressions(GRPOTrainer.log)
    assert "self._metrics[mode].items()" in code
    assert "logs.update(metrics)" in code


@canary
def test_callbacks_are_called_below_the_trainer():
    """`find_trainer` looks for it as ``self`` on the call stack."""
    code = expressions(Trainer._inner_training_loop)
    assert "self.callback_handler.on_train_begin(args, self.state, self.control)" in code


@canary
def test_a_checkpoint_keeps_callback_states_and_a_run_ends_with_the_best():
    saving = expressions(Trainer._save_checkpoint)
    assert "self.state.stateful_callbacks[cb_name]" in saving
    ending = expressions(Trainer._finalize_training)
    assert (
        "self.args.load_best_model_at_end and self.state.best_model_checkpoint is not None"
        in ending
    )
    source = inspect.getsource(Trainer._finalize_training)
    # Restorer.hold is called from on_log, which must come before the loading.
    assert source.index("self.log(metrics)") < source.index("self._load_best_model()")
