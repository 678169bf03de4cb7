"""A plain PyTorch training on several ranks, with orch: each draws numbers of its own."""

import sys
import time

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from workloads.runtime import Run

STEPS, PAUSE_S = int(sys.argv[1]), float(sys.argv[2])
torch.distributed.init_process_group("gloo")
torch.manual_seed(7)
model = DistributedDataParallel(nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 1)))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
torch.manual_seed(torch.distributed.get_rank())
run = Run.from_env()
start = run.resume(model=model, optimizer=optimizer)
for step in range(start, STEPS):
    x = torch.randn(64, 8)
    loss = nn.functional.mse_loss(model(x), x.sin().sum(1, keepdim=True))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    time.sleep(PAUSE_S)
    run.step(step + 1, loss=loss)
torch.distributed.destroy_process_group()
