"""What GFTTrainer relies on inside trl and transformers, in their source."""

import inspect

from transformers import Trainer
from trl import GRPOConfig, GRPOTrainer

from canary import canary, expressions


@canary
def test_batches_of_a_step_are_fetched_together_and_before_the_random_state_is_restored():
    source = inspect.getsource(Trainer._run_epoch)
    fetched = source.index("self.get_batch_samples(epoch_iterator, num_batches")
    restored = source.index("self._load_rng_state(resume_from_checkpoint)", fetched)
    trained = source.index("self.training_step(model, inputs, num_items_in_batch)")
    assert fetched < restored < trained
    assert "self._prepare_inputs(inputs)" in expressions(Trainer.training_step)
    # The loss is not scaled for accumulation or processes again.
    assert GRPOTrainer.loss_is_scaled_for_ga is True
    assert "self.loss_is_scaled_for_ga is not None" in expressions(Trainer.training_step)


@canary
def test_the_epoch_is_known_when_its_order_is_asked_for():
    source = inspect.getsource(Trainer._run_epoch)
    assert "self.state.epoch = epoch + (step + 1) / steps_in_epoch" in source


@canary
def test_generation_scores_and_returns_what_is_trained_on():
    source = inspect.getsource(GRPOTrainer._generate_and_score_completions)
    for name in ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "tool_mask"):
        assert f'"{name}"' in source
    calls = expressions(GRPOTrainer._generate_and_score_completions)
    called = [e for e in calls if e.startswith("self._calculate_rewards(")]
    assert called == ["self._calculate_rewards(inputs, prompts, completions, completion_ids_list)"]
    end = inspect.getsource(GRPOTrainer._calculate_rewards).rstrip()
    assert end.endswith(
        "rewards_per_func = gather(rewards_per_func)\n        return rewards_per_func"
    )
    # Policy samples are on policy: no second forward pass for the old log-probabilities.
    assert "self.args.gradient_accumulation_steps % generate_every != 0" in calls


@canary
def test_prompts_are_tokenised_by_one_method():
    assert "self._tokenize_prompts(prompts)" in expressions(GRPOTrainer._generate)
    (end,) = [
        line.strip() for line in inspect.getsource(GRPOTrainer._tokenize_prompts).splitlines()[-1:]
    ]
    assert end == "return (prompt_ids, images, multimodal_fields)".replace("(", "").replace(")", "")


@canary
def test_the_config_derives_its_batches_where_ours_corrects_them():
    code = expressions(GRPOConfig.__post_init__)
    assert "self.generation_batch_size % self.num_generations != 0" in code
    assert "self.num_generations < 2" in code


@canary
def test_metrics_and_counters():
    assert "self._metrics[mode].items()" in expressions(GRPOTrainer.log)
    assert "self._current_train_step_time" in inspect.getsource(GRPOTrainer.training_step)
    assert "self.state.num_input_tokens_seen" in inspect.getsource(GRPOTrainer._generate)


@canary
def test_vllms_batch_is_sized_by_steps_per_generation_and_nothing_else_in_the_beginning():
    source = inspect.getsource(GRPOTrainer.__init__)
    assert source.count("args.steps_per_generation") == 1
    sized = source[source.index("max_num_seqs=") :].split(",")[0]
    assert "args.per_device_train_batch_size" in sized and "args.steps_per_generation" in sized
