"""``entropyfloor band CKPT``: keep the prompts that RL can learn from."""

from collections.abc import Sequence

from entropyfloor.cli.options import parse
from entropyfloor.rl.options import BandOptions
from entropyfloor.rollouts.options import Loading, Output, PromptOptions, Sampling


def main(argv: Sequence[str]) -> int:
    """Sample, print the histogram, write the prompts kept. Returns 0; errors are raised."""
    options, edges, sampling, loading, output, checkpoint = parse(
        argv,
        *(PromptOptions, BandOptions, Sampling, Loading, Output),
        verb="band",
        description="Draw rollouts of every prompt and keep the prompts of which some but not all "
        "pass: the calibration band, 1 to 14 of 16.",
        positional=("CKPT", "the model that RL will start from"),
        required=("prompts", "reward", "output_dir"),
        defaults={"num_samples": 16},
    )
    # Imported late: --help and usage errors do not wait for torch and transformers.
    from entropyfloor.rl.band import band_edges, calibration_band
    from entropyfloor.rollouts.processes import join_processes

    prompts = options.load()
    if options.dry_run:
        from entropyfloor.cli.dry_run import say_what_is_sampled

        band_edges(sampling.num_samples, edges.lowest, edges.highest)
        return say_what_is_sampled(options, sampling, loading, [checkpoint])
    processes = join_processes()
    band = calibration_band(
        checkpoint,
        prompts,
        options.reward,
        band=edges,
        sampling=sampling,
        loading=loading,
        output=output,
        processes=processes,
    )
    if processes.main:
        print(band.histogram())
        print(
            f"Written to {band.path}. Train on it:\n"
            f"  entropyfloor grpo --model_name_or_path {checkpoint} "
            f"--prompts {band.path} --reward {options.reward} --output_dir runs/grpo"
        )
    return 0
