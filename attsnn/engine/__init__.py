"""The training engine: one loop for every task. It knows no model and no data set."""

from .checkpoint import Checkpoint, load_weights
from .checkpoint import find as find_checkpoint
from .classify import Measure, Scores, evaluate, one_hot_mse, summary
from .config import Range, as_json, check_ranges, difference, inherit
from .errors import (
    CheckpointError,
    NonFiniteError,
    RunError,
    StoppedError,
    UsageError,
    command,
    usage,
)
from .loop import fit
from .processes import Processes, leave, processes
from .progress import duration
from .record import Run, reporting, table
from .report import conclude
from .rng import seed_all
from .sampling import Batches, in_order, split
from .setup import cosine, decayed, device, schedule
from .topk import TopK, top_k
from .update import Update, ema_of

__all__ = [
    "Batches",
    "Checkpoint",
    "CheckpointError",
    "Measure",
    "NonFiniteError",
    "Processes",
    "Range",
    "Run",
    "RunError",
    "Scores",
    "StoppedError",
    "TopK",
    "Update",
    "UsageError",
    "as_json",
    "check_ranges",
    "command",
    "conclude",
    "cosine",
    "decayed",
    "device",
    "difference",
    "duration",
    "ema_of",
    "evaluate",
    "find_checkpoint",
    "fit",
    "in_order",
    "inherit",
    "leave",
    "load_weights",
    "one_hot_mse",
    "processes",
    "reporting",
    "schedule",
    "seed_all",
    "split",
    "summary",
    "table",
    "top_k",
    "usage",
]
