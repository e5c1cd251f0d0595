"""What tests put into a framework's own process: record its batches, or replace its loss."""

import os

import torch
from transformers import Trainer, TrainerCallback
from transformers.trainer import DEFAULT_CALLBACKS

FILE = "RECORD_TO"  # environment variable: where the batches go


class Recorder(TrainerCallback):
    """Keep the arguments of every forward in training mode; they are saved when training ends."""

    def on_init_end(self, args, state, control, model=None, **_):
        self.batches = []

        def record(module, positional, named):
            if module.training:
                kept = {k: v.clone() for k, v in named.items() if isinstance(v, torch.Tensor)}
                self.batches.append(kept)

        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        base.register_forward_pre_hook(record, with_kwargs=True)

    def on_train_end(self, args, state, control, **_):
        torch.save(self.batches, os.environ[FILE])


def record():
    DEFAULT_CALLBACKS.append(Recorder)


def replace_loss():
    """Put cross-entropy from logits in place of ``Trainer.compute_loss``, as Unsloth does."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        inputs = dict(inputs)
        labels = inputs.pop("labels")[:, 1:]
        outputs = model(**inputs)
        logits = outputs.logits[:, :-1].float()
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        return (loss, outputs) if return_outputs else loss

    Trainer.compute_loss = compute_loss
