"""``entropyfloor VERB ...``: one file per verb in this folder, imported when its verb is called."""

import sys
from collections.abc import Sequence
from importlib import import_module

from entropyfloor.cli.errors import USAGE_ERROR, exit_code

VERBS = {
    "sft": "train with SEDTrainer: every flag and YAML of `trl sft`, plus our losses",
    "screen": "measure entropy, pass@k and degenerate groups of checkpoints before RL is paid for",
    "compare": "two screened checkpoints prompt by prompt: who is ahead at which k, what was lost",
    "rescue": "move a collapsed checkpoint back towards its base, just above the entropy floor",
    "band": "keep the prompts of which some but not all rollouts pass, for RL",
    "grpo": "train with GRPO in its DAPO variant, watched for collapse: every flag of `trl grpo`",
    "overlap": "which prompts are among the rows of training data: exactly, normalised or nearly",
    "diagnose": "collapse of a run from its log: trl, verl, CSV or TensorBoard",
    "gft": "group fine-tuning: experts and a teacher beside own samples, weighted by advantages",
    "gft-groups": "experts' and a teacher's responses to every prompt, scored, for GFT",
    "echelon": "losses at growing depth, before and after RL, compared: a recipe, resumable",
    "coupling": "what RL did to the SFT loss along a run, SFT to the reward, and how long to train",
    "pstar": "print the majority-degeneration threshold p*(g) of a group size",
    "demo": "CE and SED at three depths on a real model, screened: the whole path on this machine",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb. Returns the exit code: 0 done, 2 usage or data error, or a verb's own."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in {"-h", "--help", "help"}:
        print("usage: entropyfloor VERB [options]\n")
        for verb, summary in VERBS.items():
            print(f"  {verb:<10} {summary}")
        print("\n`entropyfloor VERB --help` lists the options of one verb.")
        return 0
    if arguments[0] == "--version":
        from entropyfloor import __version__

        print(f"entropyfloor {__version__}")
        return 0
    verb, rest = arguments[0], arguments[1:]
    if verb not in VERBS:
        print(
            f"entropyfloor: unknown verb {verb!r}; choose one of {', '.join(VERBS)}",
            file=sys.stderr,
        )
        return USAGE_ERROR
    return exit_code(
        verb, lambda: import_module(f"entropyfloor.cli.{verb.replace('-', '_')}").main(rest)
    )


if __name__ == "__main__":
    sys.exit(main())
