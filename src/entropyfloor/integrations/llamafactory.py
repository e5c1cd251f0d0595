"""LLaMA-Factory: ``llamafactory-cli train`` with our loss and floor, from the same YAML.

    python -m entropyfloor.integrations.llamafactory train.yaml
    torchrun --nproc_per_node 8 -m entropyfloor.integrations.llamafactory train.yaml

The YAML is LLaMA-Factory's own and one section more:

    entropyfloor: {loss: gem, beta: 0.7, entropy_floor: 0.2}

From Python: ``run_exp(args, callbacks=[PatchingCallback(Settings.of({...}))])``. LLaMA-Factory's
command takes no callbacks, so this module hands them to the function that the command calls.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from entropyfloor.integrations.settings import PatchingCallback, Settings

SECTION = "entropyfloor"
# Of LLaMA-Factory's own losses: they would be computed from logits, in place of ours.
_OWN_LOSSES = ("use_dft_loss", "use_asft_loss", "use_eaft_loss")


def train(arguments: Mapping[str, Any]) -> None:
    """Run LLaMA-Factory's supervised fine-tuning.

    Args:
        arguments: what its YAML says, and our section.

    Raises:
        ValueError: no section, settings that cannot be, another stage than supervised fine-tuning.

    """
    arguments = dict(arguments)
    if SECTION not in arguments:
        raise ValueError(
            f"the configuration has no section {SECTION!r}, so nothing of ours would be used; add "
            f"`{SECTION}: {{loss: sed}}`, or run `llamafactory-cli train`"
        )
    settings = Settings.of(arguments.pop(SECTION))
    if arguments.get("stage", "sft") not in ("sft", "pt"):
        raise ValueError(
            f"stage is {arguments['stage']!r}; our losses are for supervised fine-tuning (sft, pt)"
        )
    if other := [name for name in _OWN_LOSSES if arguments.get(name)]:
        raise ValueError(f"{', '.join(other)} replaces our loss; leave it out, or our section")
    from llamafactory.train.tuner import run_exp

    run_exp(arguments, callbacks=[PatchingCallback(settings)])


def main() -> None:
    """Read a file of YAML or JSON, and ``key=value`` words after it, as LLaMA-Factory does."""
    from omegaconf import OmegaConf

    if len(sys.argv) < 2:
        sys.exit("usage: python -m entropyfloor.integrations.llamafactory FILE [key=value ...]")
    file, *words = sys.argv[1:]
    merged = OmegaConf.merge(OmegaConf.load(file), OmegaConf.from_cli(words))
    train(OmegaConf.to_container(merged))


if __name__ == "__main__":
    main()
