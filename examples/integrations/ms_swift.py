# swift sft --external_plugins examples/integrations/ms_swift.py --model Qwen/Qwen2.5-0.5B \
#     --dataset rows.jsonl --tuner_type full --output_dir runs/swift --logging_steps 1
from entropyfloor.integrations.ms_swift import train_with

train_with(loss="gem", beta=0.7, entropy_floor=0.2)
