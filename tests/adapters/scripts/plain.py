"""A plain PyTorch training: a small network learns a function of random numbers; dropout makes it use its generator."""

import sys
import time

import torch
from torch import nn

STEPS, PAUSE_S = int(sys.argv[1]), float(sys.argv[2])
torch.manual_seed(7)
model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 1))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
start = 0
for step in range(start, STEPS):
    x = torch.randn(64, 8)
    loss = nn.functional.mse_loss(model(x), x.sin().sum(1, keepdim=True))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    schedule.step()
    time.sleep(PAUSE_S)
    if step % 100 == 0:
        print(step, loss.item())
print("done", STEPS)
