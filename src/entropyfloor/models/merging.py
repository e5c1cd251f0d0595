"""An adapter merged into its base: a model directory that trainers without PEFT can start from."""

from pathlib import Path

import torch

from entropyfloor.io import whole_folder
from entropyfloor.models.checkpoints import load_checkpoint


def merged_directory(checkpoint: str | Path, target: Path) -> Path:
    """Write the model that an adapter checkpoint computes, in float32; a whole one is returned.

    Where the adapter changes the input embeddings and the output head is tied to them, the merged
    model's are two: the adapter did not change the head.

    Args:
        checkpoint: model or PEFT adapter directory.
        target: receives the merged model; what is there is replaced.

    Returns:
        ``target``, or ``checkpoint`` if it is no adapter.

    Raises:
        ValueError: a prompt-learning adapter, which has no weights to merge.

    """
    if not (Path(checkpoint) / "adapter_config.json").is_file():
        return Path(checkpoint)
    loaded = load_checkpoint(checkpoint, dtype="float32", device="cpu")
    if not loaded.pads:
        raise ValueError(
            f"{checkpoint} is a prompt-learning adapter and cannot be merged into its base; train "
            "with LoRA, or all weights"
        )
    inner = loaded.inner_model
    head, embeddings = inner.get_output_embeddings(), inner.get_input_embeddings()
    # PEFT wraps a module that its adapter changes.
    base_of_embeddings = getattr(embeddings, "base_layer", embeddings)
    base_of_head = getattr(head, "base_layer", head)
    if embeddings is not base_of_embeddings and base_of_head.weight is base_of_embeddings.weight:
        base_of_head.weight = torch.nn.Parameter(base_of_head.weight.detach().clone())
        inner.config.tie_word_embeddings = False
    merged = loaded.model.merge_and_unload()
    with whole_folder(target) as unfinished:
        merged.save_pretrained(unfinished)
        loaded.tokenizer.save_pretrained(unfinished)
    return target
