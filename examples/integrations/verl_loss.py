# PYTHONPATH=examples/integrations torchrun --nproc_per_node 8 -m verl.trainer.sft_trainer \
#     model.external_lib=verl_loss model.use_fused_kernels=true model.path=Qwen/Qwen2.5-0.5B \
#     data.train_files=rows.parquet
from entropyfloor.integrations.verl import train_with

train_with("gem", beta=0.7)
