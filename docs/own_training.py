"""Your own training with attsnn's engine: you write a network, data and a loss; the engine does the rest.

python docs/own_training.py

The run directory contains the configuration, metrics, curves and checkpoints. To continue a run that was
stopped, set RESUME = "auto" and run the same command: the results are the same to the bit.
"""

import torch
from torch import nn
from torch.utils.data import Dataset

from attsnn import engine, layers, neurons

RESUME = None  # "auto" continues the run


class Signals(Dataset):
    """Noisy signals of four classes. An index and a seed always give the same sample."""

    def __init__(self, count: int):
        self.labels = torch.arange(count) % 4

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, key):
        index, seed = key if isinstance(key, tuple) else (key, 0)  # `Batches` asks for (index, seed)
        draw = torch.Generator().manual_seed((int(seed) + int(index)) % 2**63)
        noise = torch.randn(8, 16, generator=draw)
        noise[:, 4 * self.labels[index] : 4 * self.labels[index] + 4] += 1
        return noise, self.labels[index]  # [T, F]


def loss(model, batch):
    """Returns the value to minimise, and further metrics to report."""
    x, labels = batch
    scores = model(x.transpose(0, 1))  # [N, T, F] -> [T, N, F] -> [N, classes]
    accuracy = (scores.argmax(1) == labels).float().mean()
    return engine.losses.cross_entropy(scores, labels), {"accuracy": accuracy}


@torch.no_grad()
def evaluate(model, poll):
    """Returns the metrics of an epoch. If it takes long, call poll() between batches: it answers Ctrl-C."""
    x, labels = next(iter(torch.utils.data.DataLoader(Signals(200), 200)))
    return {"val_accuracy": (model(x.transpose(0, 1)).argmax(1) == labels).float().mean().item()}


def main() -> None:
    engine.seed_all(0)
    hidden = layers.SpikingLayer(nn.Linear(16, 32), neurons.leaky(), norm=nn.BatchNorm1d(32))
    model = nn.Sequential(hidden, layers.Rate(), nn.Linear(32, 4))
    options = engine.Training(epochs=3, batch=32, lr=0.01)
    batches = engine.Batches(Signals(960), options.batch, options.seed, key=lambda index, seed: (index, seed))
    optimizer = options.optimiser(model)
    schedule = options.scheduler(optimizer, len(batches))
    recipe = engine.as_json(options)
    task = {"loss": loss, "evaluate": evaluate, "choose": "val_accuracy", "update": options.update(model)}
    with engine.Run.open(options.runs_dir, "own", recipe, resume=RESUME, free=options.FREE) as run:
        engine.fit(model, optimizer, schedule, batches, run=run, epochs=options.epochs, **task)


if __name__ == "__main__":
    main()
