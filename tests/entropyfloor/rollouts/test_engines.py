import sys
from types import ModuleType, SimpleNamespace
from typing import ClassVar

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from entropyfloor.models.checkpoint_sources import find_checkpoints
from entropyfloor.rollouts import teacher_forced
from entropyfloor.rollouts.engines import choose_engine
from entropyfloor.rollouts.processes import Processes
from entropyfloor.rollouts.prompts import PromptSet
from entropyfloor.rollouts.rendering import encode_prompts
from entropyfloor.rollouts.teacher_forced import Completion, token_entropies
from flat_calls import even, screen
from tiny_models import FAMILIES, drawn_from, tiny_checkpoint

PROMPTS = PromptSet(
    tuple({"prompt": text} for text in ["1+2=", "a", "12+34+56=", "bcdef: 7-", "0", "99-1=#"])
)
ENDS = [1, *range(20, 60)]


@pytest.mark.parametrize("chunk_bytes", [7 * 261 * 4, 2**26])
@pytest.mark.parametrize("family", FAMILIES)
def test_rescored_entropies_equal_those_recorded_in_generation(family, chunk_bytes, monkeypatch):
    monkeypatch.setattr(teacher_forced, "_CHUNK_BYTES", chunk_bytes)
    monkeypatch.setattr(teacher_forced, "_ROW_TOKENS", 60)
    checkpoint = tiny_checkpoint(family, ends=ENDS)
    encoded = encode_prompts(PROMPTS, checkpoint.tokenizer, where="tiny")
    sampling = {"max_new_tokens": 10, "batch_size": 7, "temperature": 0.8, "top_k": 50}
    drawn = list(drawn_from(checkpoint, encoded, 3, **sampling).values())
    completions = [
        Completion(r.prompt_index, tuple(encoded[r.prompt_index]), r.token_ids) for r in drawn
    ]
    assert len({len(rollout.token_ids) for rollout in drawn}) > 1
    for rollout, again in zip(drawn, token_entropies(checkpoint, completions), strict=True):
        assert again.dtype == rollout.entropies_nats.dtype
        assert again == pytest.approx(rollout.entropies_nats, abs=1e-5)


class FakeLLM:
    """What we use of ``vllm.LLM``, around transformers; one row at a time, without a cache."""

    made: ClassVar[list] = []

    def __init__(self, model, tokenizer, **options):
        assert model == tokenizer
        self.options, self.asked = options, []
        self.model = AutoModelForCausalLM.from_pretrained(model).eval()
        FakeLLM.made.append(self)

    @torch.no_grad()
    def generate(self, prompts, sampling_params, *, use_tqdm):
        assert not use_tqdm
        return [
            self._one(prompt["prompt_token_ids"], params)
            for prompt, params in zip(prompts, sampling_params, strict=True)
        ]

    def _one(self, prompt, params):
        self.asked.append(params)
        generator = torch.Generator().manual_seed(params.seed)
        ids = []
        while len(ids) < params.max_tokens and (not ids or ids[-1] not in params.stop_token_ids):
            logits = self.model(torch.tensor([[*prompt, *ids]])).logits[0, -1] / params.temperature
            if params.top_k > 0:
                logits[logits < logits.topk(params.top_k).values[-1]] = -torch.inf
            ids.append(int(torch.multinomial(logits.softmax(-1), 1, generator=generator)))
        return SimpleNamespace(outputs=[SimpleNamespace(token_ids=ids)])


@pytest.fixture
def vllm(monkeypatch):
    module = ModuleType("vllm")
    module.__spec__ = SimpleNamespace(name="vllm")
    module.LLM, module.SamplingParams = FakeLLM, SimpleNamespace
    monkeypatch.setitem(sys.modules, "vllm", module)
    FakeLLM.made.clear()
    return module


OPTIONS = {
    "reward": even,
    "max_new_tokens": 8,
    "num_samples": 8,
    "group_size": 4,
    "progress": False,
}


def test_screening_with_vllm(save_checkpoint, vllm, tmp_path):
    directory = save_checkpoint()
    found = screen([directory], prompts=PROMPTS, engine="vllm", output_dir=tmp_path, **OPTIONS)
    usual = screen([directory], prompts=PROMPTS, **OPTIONS)
    assert (found.settings["engine"], usual.settings["engine"]) == ("vllm", "transformers")
    own, other = found.checkpoints[0], usual.checkpoints[0]
    # Other rollouts of the same distribution: 48 of them, and their 95 % intervals overlap.
    assert own.token_entropy_histogram != other.token_entropy_histogram
    for measure in ("entropy_nats", "pass_at_1", "mean_tokens"):
        mine, theirs = own.intervals[measure], other.intervals[measure]
        assert mine.low < theirs.high and theirs.low < mine.high, measure
    assert own.greedy_pass_at_1 == other.greedy_pass_at_1

    (llm,) = FakeLLM.made
    assert llm.options["load_format"] == "safetensors"
    assert llm.options["generation_config"] == "vllm"
    assert llm.options["dtype"] == "float32" and not llm.options["trust_remote_code"]
    assert llm.options["max_model_len"] == len("12+34+56=") + 8
    sampled = [params for params in llm.asked if params.top_k == -1]
    greedy = [params for params in llm.asked if params.top_k == 1]
    assert len(sampled) == 6 * 8 and len(greedy) == 6
    assert {(p.temperature, p.top_p, p.max_tokens) for p in sampled} == {(1.0, 1.0, 8)}
    assert len({p.seed for p in sampled}) == len(sampled), "every rollout has its own seed"

    again = screen([directory], prompts=PROMPTS, engine="vllm", batch_size=7, **OPTIONS)
    assert again.checkpoints[0].entropy_nats == pytest.approx(own.entropy_nats, abs=1e-6)
    assert again.checkpoints[0].per_prompt_pass_rates == own.per_prompt_pass_rates
    with pytest.raises(ValueError, match="engine: 'vllm' then, 'transformers' now"):
        screen([directory], prompts=PROMPTS, output_dir=tmp_path, **OPTIONS)


def test_further_arguments_of_the_engine(save_checkpoint, vllm, tmp_path):
    directory, args = save_checkpoint(), '{"enable_chunked_prefill": false, "max_model_len": 99}'
    options = {**OPTIONS, "prompts": PROMPTS, "output_dir": tmp_path}
    report = screen([directory], engine="vllm", engine_args=args, **options)
    asked = {"enable_chunked_prefill": False, "max_model_len": 99}
    assert asked.items() <= FakeLLM.made[0].options.items()
    assert report.settings["engine_args"] == asked
    with pytest.raises(ValueError, match="engine_args"):  # other rollouts lie there
        screen([directory], engine="vllm", **options)
    for engine, wrong, message in (
        ("transformers", {"seed": 1}, "arguments of vLLM, and the engine is transformers"),
        ("vllm", {"dtype": "half"}, "engine_args holds dtype, which the checkpoint"),
        ("vllm", "[1]", "--engine_args is no JSON object"),
    ):
        with pytest.raises(ValueError, match=message):
            screen([directory], prompts=PROMPTS, engine=engine, engine_args=wrong, **OPTIONS)


def chosen(engine, directory, *, device="cpu", processes=None):
    return choose_engine(
        engine,
        sources=find_checkpoints([directory]),
        device=torch.device(device),
        processes=processes or Processes(),
    )


def test_auto(save_checkpoint, vllm, monkeypatch):
    directory = save_checkpoint()
    assert chosen("auto", directory) == "transformers"  # a CPU
    assert chosen("auto", directory, device="cuda") == "vllm"
    assert chosen("auto", directory, device="cuda:1") == "transformers"
    monkeypatch.setitem(sys.modules, "vllm", None)
    assert chosen("auto", directory, device="cuda") == "transformers"


def test_what_vllm_cannot_do_is_said_before_anything_is_loaded(save_checkpoint, vllm, monkeypatch):
    directory = save_checkpoint()
    two = Processes(rank=0, count=2, group=object())
    with pytest.raises(ValueError, match="one process, and 2 were started"):
        chosen("vllm", directory, processes=two)
    with pytest.raises(ValueError, match="CUDA_VISIBLE_DEVICES=1"):
        chosen("vllm", directory, device="cuda:1")
    with pytest.raises(ValueError, match="unknown engine 'sglang'; give one of transformers, vllm"):
        chosen("sglang", directory)
    adapter = directory.parent / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(f'{{"base_model_name_or_path": "{directory}"}}')
    save_file({"weight": torch.zeros(1)}, adapter / "adapter_model.safetensors")
    with pytest.raises(ValueError, match="adapter is an adapter; merge it into its base first"):
        chosen("vllm", adapter)
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ValueError, match="not installed; pip install vllm, or use transformers"):
        screen([directory], prompts=PROMPTS, engine="vllm", max_new_tokens=8)
