import pytest
import yaml

from entropyfloor.echelon.recipe import SHIPPED, load_recipe
from entropyfloor.echelon.sources import check_sources, sources


def test_yaml_and_mapping_give_the_same_recipe(tiny_recipe, tmp_path):
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(tiny_recipe()))
    assert load_recipe(file) == load_recipe(tiny_recipe())
    assert load_recipe(load_recipe(file).to_dict()) == load_recipe(file)


def test_a_key_without_a_value_leaves_the_default(tiny_recipe):
    recipe = load_recipe(tiny_recipe(depths=None, sft=None, screening=None))
    assert recipe.depths == (1.0, 1.9, 2.9, 3.8, 5.8)  # the paper's
    assert recipe.sft == {} and recipe.screening_options(after_rl=False)["num_samples"] == 8


def test_numbers_are_those_of_yaml_1_2_and_a_name_is_text(tiny_recipe, tmp_path):
    file = tmp_path / "dated.yaml"
    rest = yaml.safe_dump({**tiny_recipe(), "name": None, "sft": None})
    for text, rate, name in [
        ("sft: {learning_rate: 1e-4}\nname: 2026-01-31", 1e-4, "2026-01-31"),
        ("sft: {learning_rate: 2.E-3}", 2e-3, "dated"),
    ]:
        file.write_text(f"{rest}{text}\n")
        recipe = load_recipe(file)
        assert recipe.sft_options("ce")["learning_rate"] == rate and recipe.name == name


def test_a_loss_has_the_common_settings_behind_its_own(tiny_recipe):
    recipe = tiny_recipe(
        losses={"ce": {"loss": "ce"}, "slow": {"loss": "ce", "learning_rate": 1e-5}},
        sft={"learning_rate": 1e-3, "weight_decay": 0.1},
    )
    checked = load_recipe(recipe)
    assert checked.sft_options("ce")["learning_rate"] == 1e-3
    assert checked.sft_options("slow")["learning_rate"] == 1e-5
    assert checked.sft_options("slow")["weight_decay"] == 0.1


def test_a_floor_is_probed_by_steps_not_by_the_clock(tiny_recipe):
    checked = load_recipe(tiny_recipe(losses={"floor": {"loss": "ce", "entropy_floor": 0.2}}))
    assert checked.sft_options("floor")["floor_probe_steps"] == 20


def test_evaluation_differs_from_screening_where_it_says_so(tiny_recipe):
    checked = load_recipe(tiny_recipe(evaluation={"num_samples": 8}))
    assert checked.screening_options(after_rl=False)["num_samples"] == 4
    assert checked.screening_options(after_rl=True)["num_samples"] == 8
    assert checked.screening_options(after_rl=True)["group_size"] == 4


def gft(**options):
    return {"losses": {"ce": {"loss": "ce"}, "gft": {"trainer": "gft", **options}}}


def test_a_gft_loss_takes_of_the_common_settings_what_its_trainer_has(tiny_recipe):
    common = {"learning_rate": 1e-3, "packing": False, "per_device_train_batch_size": 4}
    recipe = load_recipe(tiny_recipe(**gft(teacher="x", tau=0.5), sft=common))
    assert recipe.sft_options("gft") == {
        "learning_rate": 1e-3,
        "per_device_train_batch_size": 4,
        "tau": 0.5,
    }
    assert recipe.teacher("gft").checkpoint == "x" and recipe.teacher("ce") is None


def test_bf16_can_be_left_to_the_machine(tiny_recipe):
    checked = load_recipe(tiny_recipe(sft={"bf16": "auto"}))
    assert checked.sft_options("ce")["bf16"] in (True, False)
    grpo = {"steps": 4, "prompts_per_step": 2, "bf16": "auto"}
    further = load_recipe(tiny_recipe(grpo=grpo)).grpo_options()[1]
    assert further["bf16"] is checked.sft_options("ce")["bf16"]


@pytest.mark.parametrize("file", sorted(SHIPPED.glob("*.yaml")), ids=lambda file: file.stem)
def test_a_recipe_of_the_demo_is_valid(file):
    recipe = load_recipe(file)
    data = sources(recipe, 0)
    check_sources(data)
    assert list(recipe.losses) == ["ce", "sed"] and recipe.grpo is None
    assert len(data.rows) == 96 and len(data.test.rows) == 16


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"losess": {}}, r"the recipe has no setting 'losess'; did you mean losses\?"),
        ({"losses": {}}, "losses is empty"),
        ({"losses": {"a/b": {"loss": "ce"}}}, "becomes part of file names"),
        ({"losses": {"ce": "ce"}}, "losses: ce must be a mapping"),
        ({"losses": {"ce": {"loss": "cee"}}}, "loss ce: .*cee"),
        ({"losses": {"ce": {"loss": "ce", "beta": 0.7}}}, "loss ce: .*beta"),
        ({"losses": {"ce": {"loss": "ce", "learning_rte": 1}}}, "did you mean learning_rate"),
        ({"sft": {"num_train_epochs": 3}}, "num_train_epochs .* decided by the echelon"),
        ({"sft": {"lr_scheduler_type": "cosine"}}, "constant learning rate only"),
        ({"depths": [2, 1]}, "ascending"),
        ({"depths": "12"}, "depths must be a list of numbers"),
        ({"depths": ["a"]}, "depths must be a list of numbers"),
        ({"seeds": [0, 0]}, "seeds are different numbers"),
        ({"seeds": []}, "seeds are different numbers"),
        ({"threads": 0}, "threads must be at least 1"),
        ({"screening": {"samples": 8}}, "did you mean num_samples"),
        ({"screening": {"num_samples": 4, "group_size": 8}}, "below group_size"),
        ({"screening": {"num_samples": 4, "group_size": 4, "ks": [8]}}, "at least as many"),
        ({"outcome_k": 3}, "outcome_k 3 is not among"),
        ({"grpo": {"max_steps": 3}}, "grpo: max_steps is set by steps"),
        ({"grpo": {"temprature": 3}}, "did you mean temperature"),
        ({"grpo": {"steps": 0}}, "steps must be at least 1"),
        ({"grpo": [1]}, "grpo must be a mapping"),
        ({"grpo": {"per_device_train_batch_size": 8}}, "= 256 rollouts; per_device"),
        ({"peft": {"rank": 8}}, "fields of peft.LoraConfig"),
        ({"losses": {"ce": {"trainer": "dpo"}}}, "choose sft or gft"),
        ({"losses": {"ce": {"teacher": "x"}}}, "teacher needs `trainer: gft`"),
        (gft(), "teacher is missing"),
        (gft(teacher={"loss": "ce", "depth": 7}), "there is no rung ce, depth 7"),
        (gft(teacher={"loss": "gft", "depth": 0.5}), "or it is GFT's own; .* among ce and"),
        (gft(teacher={"loss": "ce"}), "a rung has loss and depth"),
        ({**gft(teacher={"loss": "ce", "depth": 0.5}), "grpo": None}, "has no grpo section"),
        (gft(teacher="x", teacher_samples=0), "teacher_samples must be a whole number"),
        (gft(teacher="x", lam=1.0), "no setting 'lam'"),
        (gft(teacher="x", beta=0.1), "loss gft: .*beta"),
        ({"grpo": {"monitor": "restore"}}, "choose warn or stop"),
        ({"losses": None}, "lacks 'losses'"),
        ({"losses": {1: {"loss": "ce"}}}, "losses: 1 becomes part of file names"),
        ({"losses": {"ü" * 65: {"loss": "ce"}}}, "at most 128 bytes"),
        ({"seeds": [0.5]}, "seeds must be a list of whole numbers"),
        ({"seeds": [2**32]}, "from 0 to 2"),
        ({"threads": "2"}, "threads must be a whole number; got '2'"),
        ({"tau_h": True}, "tau_h must be a number; got True"),
        ({"grpo": {"learning_rate": "fast"}}, "grpo: learning_rate must be a number"),
        ({"grpo": {"epsilon": 0.3}}, "grpo: epsilon_high 0.28 is below epsilon 0.3"),
        ({"screening": {"kl_to_base": "no"}}, "screening: kl_to_base must be true or false"),
        ({"screening": {"num_samples": 8, "ks": 4}}, "ks must be whole numbers from 1 on"),
        ({"screening": {"prompts": 0}}, "screening: prompts must be at least 1; got 0"),
        ({"evaluation": {"temperature": -1.0}}, "evaluation: temperature must be positive"),
    ],
)
def test_a_bad_recipe_is_refused_by_name(tiny_recipe, changes, message):
    with pytest.raises(ValueError, match=message):
        load_recipe(tiny_recipe(**changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"task": "sums"}}, "choose one of small_sums, worked_sums, gsm_symbolic, files"),
        ({"data": {"task": "small_sums", "tests": 3}}, "small_sums has no setting 'tests'"),
        ({"model": "smollm2"}, "a task for a character model"),
        ({"model": "small_chat"}, "is built for data 'worked_sums', and only that"),
        ({"model": "small_chat", "data": "worked_sums"}, "needs data: pretraining_problems"),
        (
            {"model": "smollm2", "data": {"task": "worked_sums", "held_out_problems": 0}},
            "at least 1",
        ),
        ({"model": "smollm2", "data": {"task": "worked_sums", "digits": 3}}, "digits must be 1"),
        ({"model": "smollm2", "data": {"task": "worked_sums", "ways": 0}}, "ways is 0"),
        ({"model": {"name": "small", "steps": 3}}, "'small' has no setting 'steps'"),
        ({"model": {"pretraining_steps": 3}}, "name is missing"),
        ({"model": "some/model", "data": {"task": "files"}}, "files needs train"),
        ({"data": {"task": "small_sums", "rl_prompts": 2}}, "a GRPO step takes 4 prompts"),
        ({"data": {"task": "small_sums", "test": "12"}}, "small_sums: test must be a whole number"),
        ({"data": {"task": ["small_sums"]}}, "choose one of small_sums"),
        ({"model": {"name": "small", "pretraining_steps": 0}}, "steps must be at least 1"),
    ],
)
def test_bad_data_is_refused_before_compute(tiny_recipe, changes, message):
    with pytest.raises(ValueError, match=message):
        check_sources(sources(load_recipe(tiny_recipe(**changes)), 0))


def test_a_missing_key_or_file_is_named(tiny_recipe, tmp_path):
    recipe = tiny_recipe()
    del recipe["model"]
    with pytest.raises(ValueError, match="lacks 'model'"):
        load_recipe(recipe)
    with pytest.raises(FileNotFoundError, match=r"no recipe .*none\.yaml"):
        load_recipe(tmp_path / "none.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("losses: [")
    with pytest.raises(ValueError, match="is not YAML"):
        load_recipe(broken)
