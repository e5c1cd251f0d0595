"""GFTConfig: batches in prompts, what is refused and why, options that contradict each other."""

import dataclasses

import pytest
from gft_runs import gft, settings
from trl import GRPOConfig, TrlParser

from entropyfloor import GFTConfig
from entropyfloor_losses import GroupFineTuningLoss


def config(**options):
    return GFTConfig("out", use_cpu=True, bf16=False, report_to="none", **options)


def test_defaults_are_the_papers_group():
    settings = config()
    assert settings.response_counts() == {"expert": 1, "teacher": 3, "other": 0}
    assert settings.num_self == settings.num_generations == 4
    assert settings.build_loss() == GroupFineTuningLoss(tau=0.7)
    assert set(settings.source_weights().values()) == {1.0}
    assert settings.entropy_floor is None


@pytest.mark.parametrize("num_self", [0, 1, 3, 4])
def test_batches_are_counted_in_prompts(num_self):
    settings = config(
        num_self=num_self, per_device_train_batch_size=3, gradient_accumulation_steps=5
    )
    assert (settings.per_device_train_batch_size, settings.per_device_eval_batch_size) == (3, 8)
    assert settings.steps_per_generation == 5
    assert settings.generation_batch_size == 15 * max(1, num_self)
    assert settings.num_generations == num_self


def test_a_config_can_be_made_again_from_its_own_fields():
    settings = config(num_self=3, tau=0.2, per_device_train_batch_size=2)
    again = dataclasses.replace(settings)
    assert again.num_generations == again.num_self == 3
    assert again.generation_batch_size == settings.generation_batch_size == 2 * 3


@pytest.mark.parametrize(
    ("options", "tau"),
    [({}, 0.7), ({"tau": 0.0}, 0.0), ({"tau": 2.0}, 2.0), ({"rectification": False}, 0.0)],
)
def test_loss(options, tau):
    assert config(**options).build_loss().tau == tau


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_teacher": -1}, "num_teacher is -1"),
        ({"num_teacher": "3"}, "num_teacher is '3'; it must be an integer"),
        ({"num_expert": 0, "num_teacher": 0, "num_self": 0}, "are all 0"),
        ({"num_generations": 8}, "num_generations is 8 and num_self 4"),
        ({"self_weight": -0.5}, "self_weight is -0.5"),
        ({"expert_weight": float("nan")}, "expert_weight is nan"),
        ({"group_of_one": "ignore"}, "choose one of error, imitate, skip"),
        ({"on_unscored": "zero"}, "choose one of error, leave_out"),
        ({"advantage_ddof": 2}, "must be 0 or 1"),
        ({"tau": -0.1}, "tau is -0.1"),
        ({"tau": 0.5, "rectification": False}, "rectification is off and tau 0.5"),
        ({"steps_per_generation": 4}, "steps_per_generation is 4.*so it is 1 here"),
        ({"generation_batch_size": 8}, "generation_batch_size is 8.*so it is 4 here"),
        ({"entropy_floor": 0.2, "on_violation": "pray"}, "choose one of constrain, stop, warn"),
        ({"entropy_floor": -1.0}, "floor is -1.0"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        config(**options)


@pytest.mark.parametrize(
    "options",
    [
        {"beta": 0.04},
        {"num_iterations": 2},
        {"epsilon": 0.1},
        {"epsilon_high": 0.28},
        {"delta": 2.0},
        {"importance_sampling_level": "sequence"},
        {"off_policy_mask_threshold": 0.5},
        {"vllm_importance_sampling_correction": True},
        {"loss_type": "grpo"},
        {"multi_objective_aggregation": "normalize_then_sum"},
        {"top_entropy_quantile": 0.2},
        {"entropy_coef": 0.01},
        {"use_adaptive_entropy": True},
        {"cast_lm_head_to_fp32": True},
        {"use_liger_kernel": True},
        {"label_smoothing_factor": 0.1},
        {"max_tool_calling_iterations": 2},
        {"train_sampling_strategy": "group_by_length"},
    ],
    ids=lambda options: next(iter(options)),
)
def test_options_without_effect_are_refused(options):
    (name,) = options
    with pytest.raises(ValueError, match=rf"{name}=.* would have no effect on GFT's loss"):
        config(**options)


def test_the_command_line_parses_every_field():
    parser = TrlParser(dataclass_types=[GFTConfig])
    words = "--output_dir out --use_cpu --bf16 false --tau 0.3 --num_self 2 --no_advantages"
    (result,) = parser.parse_args_and_config(words.split())
    assert (result.tau, result.num_self, result.advantages) == (0.3, 2, False)
    assert result.build_loss().tau == 0.3


def test_other_configs_and_tools_are_refused(tmp_path):
    from entropyfloor import GFTTrainer
    from tiny_models import tiny_model

    grpo = GRPOConfig(str(tmp_path), use_cpu=True, bf16=False, report_to="none")
    with pytest.raises(ValueError, match=r"args is GRPOConfig.*needs a GFTConfig"):
        GFTTrainer(tiny_model(), lambda **_: [], grpo)
    with pytest.raises(ValueError, match="tools is not supported"):
        gft(tmp_path, trainer={"tools": [print]})
    assert settings(tmp_path).num_self == 4
