"""axolotl plugin: loss and entropy floor from the YAML of ``axolotl train``.

    plugins:
      - entropyfloor.integrations.axolotl.EntropyFloorPlugin
    entropyfloor:
      loss: gem
      beta: 0.7
      entropy_floor: 0.2

With ``rl: grpo`` the section holds the arguments of `CollapseMonitor` instead, which then watches
the run. Written for axolotl's ``BasePlugin``; only axolotl imports this file.
"""

from typing import Any

from axolotl.integrations.base import BasePlugin
from pydantic import BaseModel

# Nothing else of ours up here: axolotl goes on without a plugin that cannot be imported.


class EntropyFloorArgs(BaseModel):
    """The section of axolotl's YAML: keys of `Settings.of`, or arguments of `CollapseMonitor`."""

    entropyfloor: dict[str, Any] | None = None


class EntropyFloorPlugin(BasePlugin):
    """Patch the model that axolotl has loaded, and give the trainer our callback."""

    def __init__(self) -> None:
        super().__init__()
        self.callback: Any = None

    def get_input_args(self) -> str:
        """Name of the pydantic class with our section."""
        return f"{__name__}.EntropyFloorArgs"

    def register(self, cfg: Any) -> None:
        """Check the section before anything is loaded."""
        section = cfg.get("entropyfloor") or {}
        if cfg.get("rl") is None:
            from entropyfloor.integrations.settings import Settings

            Settings.of(section)
        else:
            from entropyfloor.rl.collapse_monitor import CollapseMonitor

            CollapseMonitor(**section)

    def post_model_load(self, cfg: Any, model: Any) -> None:
        """Patch the model: adapters are on, nothing wraps it yet."""
        if cfg.rl is None:
            from entropyfloor.integrations.settings import Settings

            self.callback = Settings.of(cfg.entropyfloor).patch(model)

    def add_callbacks_post_trainer(self, cfg: Any, trainer: Any) -> list[Any]:
        """Floor and metrics of SFT, or the monitor of GRPO."""
        if cfg.rl is not None:
            from entropyfloor.rl.collapse_monitor import CollapseMonitor

            self.callback = CollapseMonitor(**(cfg.entropyfloor or {})).attach(trainer)
        return [self.callback]

    def on_rollouts_scored(
        self,
        cfg: Any,
        trainer: Any,
        prompts: list[str],
        completions: list[str],
        rewards: dict[str, list[float]],
        advantages: list[float],
    ) -> None:
        """Show the monitor rewards that axolotl's asynchronous trainer computed elsewhere."""
        self.callback.see_rewards(rewards)
