"""A training of your own on attsnn's engine: a network, data, a loss; the engine has the rest.

python docs/own_training.py

The run directory has the configuration, metrics, curves and checkpoints; the same command with RESUME =
"auto" goes on where it was stopped, to the same bits.
"""

import torch
from torch import nn
from torch.utils.data import Dataset

from attsnn import engine, layers, neurons

RESUME = None


class Signals(Dataset):
    """Noisy signals of four classes: sample i of a seed is always the same."""

    def __init__(self, count: int):
        self.labels = torch.arange(count) % 4

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, key):
        index, seed = key if isinstance(key, tuple) else (key, 0)
        draw = torch.Generator().manual_seed((int(seed) + int(index)) % 2**63)
        noise = torch.randn(8, 16, generator=draw)
        noise[:, 4 * self.labels[index] : 4 * self.labels[index] + 4] += 1
        return noise, self.labels[index]  # [T, F]


def loss(model, batch):
    """(what is minimised, what is reported beside)."""
    x, labels = batch
    scores = model(x.transpose(0, 1))  # [N, T, F] -> [T, N, F] -> [N, classes]
    accuracy = (scores.argmax(1) == labels).float().mean()
    return engine.losses.cross_entropy(scores, labels), {"accuracy": accuracy}


@torch.no_grad()
def evaluate(model, poll):
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
