"""Fails when what we rely on inside trl moves, and says what to verify before the pin is raised.

`SEDTrainer` hands SFTTrainer.compute_loss a forward whose ``log_probs`` is a scalar. That is right
only as long as compute_loss does no more with the outputs than what is listed here.
"""

import ast
import inspect
import textwrap

import trl
from packaging.specifiers import SpecifierSet
from trl import SFTTrainer
from trl.trainer.utils import FusedCausalLMOutput, add_fused_lm_head

SUPPORTED = SpecifierSet(">=1.16,<1.17")
READ_FROM_OUTPUTS = {"log_probs", "label_mask", "aux_loss", "entropy", "is_top1"}


def tree_of(function):
    return ast.parse(textwrap.dedent(inspect.getsource(function)))


def expressions(function):
    return {ast.unparse(node) for node in ast.walk(tree_of(function)) if isinstance(node, ast.expr)}


def test_version():
    assert trl.__version__ in SUPPORTED, (
        f"trl {trl.__version__} is installed. Hold its SFTTrainer.compute_loss and "
        "add_fused_lm_head against models/loss_head.py and trainers/sed_trainer.py, then widen "
        "the pin here and in pyproject.toml"
    )


def test_compute_loss_calls_the_model_as_we_answer_it():
    found = expressions(SFTTrainer.compute_loss)
    message = (
        "SFTTrainer.compute_loss no longer contains `{}`; check that SEDTrainer's patched forward "
        "is still what is called, and minus the sum of our objective still what is reduced"
    )
    for expression in (
        "model(**inputs, fused_lm_head=True)",
        "-outputs.log_probs",
        "per_token_loss.sum() / torch.as_tensor(num_tokens).clamp(min=1)",
        "self.router_aux_loss_coef * outputs.aux_loss",
    ):
        assert expression in found, message.format(expression)


def test_compute_loss_reads_nothing_else_of_the_outputs():
    read = {
        node.attr
        for node in ast.walk(tree_of(SFTTrainer.compute_loss))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "outputs"
    }
    assert read == READ_FROM_OUTPUTS, (
        f"SFTTrainer.compute_loss reads {sorted(read)} of the model's outputs; it read "
        f"{sorted(READ_FROM_OUTPUTS)}. LossHeadOutput must supply what is new, per token or summed"
    )
    assert read <= set(inspect.signature(FusedCausalLMOutput).parameters)


def test_log_probs_are_only_summed():
    """It is a scalar of ours: beside the DFT branch (refused), only its negative is used."""
    uses = [
        ast.unparse(node)
        for node in ast.walk(tree_of(SFTTrainer.compute_loss))
        if isinstance(node, ast.Assign) and "log_probs" in ast.unparse(node.value)
    ]
    assert uses == [
        "per_token_loss = -outputs.log_probs",
        "per_token_loss = per_token_loss * outputs.log_probs.exp().detach()",
    ], f"log_probs is now used as {uses}; a scalar may no longer do"


def test_positional_arguments_of_the_trainer():
    names = list(inspect.signature(SFTTrainer.__init__).parameters)[1:]
    assert names[:2] == ["model", "args"]
    assert names.index("compute_loss_func") == 6, (
        "compute_loss_func moved; SEDTrainer.__init__ looks for it at the seventh position"
    )


def test_the_patched_forward_has_the_same_contract():
    inner = next(
        node
        for node in ast.walk(tree_of(add_fused_lm_head))
        if isinstance(node, ast.FunctionDef) and node.name == "_fused_forward"
    )
    names = [argument.arg for argument in inner.args.args + inner.args.kwonlyargs]
    assert names == [
        "self",
        "fused_lm_head",
        "labels",
        "shift_labels",
        "num_items_in_batch",
    ], f"trl's fused forward takes {names}; models/loss_head.py must take the same"


def test_trl_scales_the_logits_as_we_do():
    source = inspect.getsource(add_fused_lm_head)
    for name in (
        "final_logit_softcapping",
        "logit_scale",
        "output_multiplier",
        "lm_head_multiplier",
        "logits_scaling",
        "hyperclovax",
    ):
        assert name in source
    read = set(
        ast.literal_eval(ast.unparse(node.args[1]))
        for node in ast.walk(tree_of(add_fused_lm_head))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) == "getattr"
        and ast.unparse(node.args[0]) == "text_config"
        and isinstance(node.args[1], ast.Constant)
    )
    assert read == {
        "final_logit_softcapping",
        "logit_scale",
        "output_multiplier",
        "lm_head_multiplier",
        "logits_scaling",
        "output_router_logits",
        "router_aux_loss_coef",
    }, f"trl reads {sorted(read)} off the config; models/logit_transform.py must read the same"
