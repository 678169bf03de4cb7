"""A training with accelerate: two epochs and more over a small data set, shuffled anew in each."""

import sys
import time

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

EPOCHS, PAUSE_S = int(sys.argv[1]), float(sys.argv[2])
set_seed(7)
accelerator = Accelerator(cpu=True)
x_all = torch.randn(640, 8)
loader = DataLoader(TensorDataset(x_all, x_all.sin().sum(1, keepdim=True)), batch_size=16, shuffle=True)
model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 1))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
for batch in (b for _ in range(EPOCHS) for b in loader):
    x, y = batch
    loss = nn.functional.mse_loss(model(x), y)
    optimizer.zero_grad()
    accelerator.backward(loss)
    optimizer.step()
    time.sleep(PAUSE_S)
print("done")
