"""A training with transformers.Trainer: a small GPT-2 from nothing, over tokens that are made here."""

import sys

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments, set_seed

from workloads.adapters.hf_trainer import OrchCallback, latest_checkpoint

STEPS = int(sys.argv[1])
LOGS_EVERY = int(sys.argv[2]) if len(sys.argv) > 2 else 1
set_seed(7)
model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=32, n_embd=32, n_layer=1, n_head=2))
tokens = torch.randint(0, 64, (512, 1)) + torch.arange(32) % 7
data = [{"input_ids": row % 64, "labels": row % 64} for row in tokens]
args = TrainingArguments(
    "trainer_output", max_steps=STEPS, per_device_train_batch_size=8, logging_steps=LOGS_EVERY, save_steps=20,
    learning_rate=1e-3, report_to=[], use_cpu=True, disable_tqdm=True, include_num_input_tokens_seen="all",
)  # fmt: skip
trainer = Trainer(model, args, train_dataset=data, callbacks=[OrchCallback()])
trainer.train(resume_from_checkpoint=latest_checkpoint())
print("done", trainer.state.global_step)
