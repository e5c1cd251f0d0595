"""``measure_coupling``: what RL did to the SFT loss along a run, or SFT to the reward.

Everything that can be checked without a model is checked first. Then, checkpoint by checkpoint:
rollouts with rewards, held-out loss, gradients; and with the start of the run as the partner, both
KL divergences. What follows from the curves is computed at the end, from numbers alone.
"""

from entropyfloor.coupling.measure import Plan, claim, measure
from entropyfloor.coupling.options import CouplingOptions, RunOptions
from entropyfloor.coupling.preparation import find_run, same_tokens
from entropyfloor.coupling.report import CouplingReport
from entropyfloor.coupling.summary import summarise
from entropyfloor.rollouts.engines import ready_to_draw, versions
from entropyfloor.rollouts.options import Loading, Output, Sampling
from entropyfloor.rollouts.processes import Processes
from entropyfloor.rollouts.prompts import PromptSet
from entropyfloor.rollouts.rewards import RewardFunction, reward_by_name, reward_name
from entropyfloor.rollouts.rollout_store import source_digest
from entropyfloor.stats.intervals import CONFIDENCE


def measure_coupling(
    run: RunOptions,
    demonstrations: PromptSet,
    prompts: PromptSet,
    reward: RewardFunction | str,
    *,
    coupling: CouplingOptions = CouplingOptions(),
    sampling: Sampling = Sampling(),
    loading: Loading = Loading(),
    output: Output = Output(),
) -> CouplingReport:
    """Measure the coupling of SFT and RL along one run.

    Args:
        run: the checkpoints of one run and what it started from.
        demonstrations: held-out rows with ``prompt`` and ``completion``.
        prompts: held-out rows for the reward.
        reward: a function in trl's signature, or a name.
        coupling: what is measured beside rewards and losses.
        sampling: 2 rollouts or more per prompt; at temperature 1, without top-p and top-k, which
            divergences and gradients are estimated from, by transformers.
        loading: how checkpoints are loaded.
        output: ``output_dir`` gets coupling.json, .md, .html and .png, and everything measured;
            measuring into it again goes on where a killed run was, and with more checkpoints adds
            them.

    Raises:
        ValueError: an argument, row, reward or checkpoint that cannot work, tokenizers that
            differ; the message says how to mend it.
        FileNotFoundError: a checkpoint that does not exist.

    """
    if sampling.num_samples < 2:
        raise ValueError(f"num_samples must be at least 2; got {sampling.num_samples}")
    for name in ("temperature", "top_p", "top_k", "engine"):
        if (value := getattr(sampling, name)) != getattr(Sampling(), name):
            raise ValueError(
                f"{name} is {value}; divergences and gradients are estimated from rollouts at "
                "temperature 1, without top_p and top_k, drawn by transformers: leave it out"
            )
    function = reward_by_name(reward) if isinstance(reward, str) else reward
    trust_remote_code = loading.trust_remote_code
    ordered = find_run(run, trust_remote_code=trust_remote_code)
    ready = ready_to_draw(
        [source.path for source in ordered.sources],
        prompts,
        function,
        held_out=demonstrations,
        sampling=sampling,
        loading=loading,
        processes=Processes(),
    )
    encoded, completions = same_tokens(
        ready.tasks, max_new_tokens=sampling.max_new_tokens, trust_remote_code=trust_remote_code
    )
    folder = None if output.output_dir is None else output.folder
    plan = Plan(prompts, function, encoded, completions, sampling, coupling, folder)
    determines = {
        "demonstrations": demonstrations.full_digest,
        "prompts and columns": prompts.full_digest,
        "reward": reward_name(reward),
        "reward's source file": source_digest(function),
        "max_new_tokens": sampling.max_new_tokens,
        "seed": sampling.seed,
        "dtype": loading.dtype,
        "device": ready.device.type,
    }
    if folder is not None:
        claim(folder, determines)
    report = summarise(
        ordered,
        measure(ordered, plan, ready.load, progress=output.progress),
        tokens=[len(completion.ids) for completion in completions],
        weight=coupling.weight,
        seed=sampling.seed,
        settings={
            **determines,
            "order": ordered.order,
            "step_unit": ordered.step_unit,
            "weight": coupling.weight,
            "num_samples": sampling.num_samples,
            "sft_samples": coupling.sft_samples,
            "gradient_rows": coupling.gradient_rows,
            "rank": coupling.rank,
            "temperature": 1.0,
            "confidence": CONFIDENCE,
            "demonstrations": _rows(demonstrations),
            "prompts": _rows(prompts),
            "versions": versions(),
        },
    )
    if folder is not None:
        # Here, not above: matplotlib is loaded only where a report is written.
        from entropyfloor.coupling.page import write_report

        write_report(report, folder)
    return report


def _rows(rows: PromptSet) -> dict[str, object]:
    return {"source": rows.source, "count": len(rows), "digest": rows.full_digest}
