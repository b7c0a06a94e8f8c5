"""The training engine: one loop for every task. It knows no model and no data set.

A "recipe" is the dataclass of a training's options; it extends `Training`. A run directory holds all that a
training writes (see `Run`).
"""

from attsnn._text import table

from . import losses
from .begin import Beginning, Prepared, begin, recorded
from .checkpoint import Checkpoint, load_weights, weights_in
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
from .inside import Inside, profiled
from .load import Loaded, described, load
from .loop import fit
from .opening import reporting
from .processes import Processes, leave, processes
from .progress import duration
from .record import Run
from .report import conclude, draw_gates, final, keep_profile, load_best
from .rng import seed_all
from .sampling import Batches, held_out, in_order, split
from .setup import cosine, decayed, device, schedule, staircase
from .streaming import OverTime, evaluate_by_step
from .topk import TopK, top_k
from .training import Schedule, Training
from .trial import Step, piece_of, rows_of_trial, settled, step_of
from .update import Update, ema_of

__all__ = [
    "Batches",
    "Beginning",
    "Checkpoint",
    "CheckpointError",
    "Inside",
    "Loaded",
    "Measure",
    "NonFiniteError",
    "OverTime",
    "Prepared",
    "Processes",
    "Range",
    "Run",
    "RunError",
    "Schedule",
    "Scores",
    "Step",
    "StoppedError",
    "TopK",
    "Training",
    "Update",
    "UsageError",
    "as_json",
    "begin",
    "check_ranges",
    "command",
    "conclude",
    "cosine",
    "decayed",
    "described",
    "device",
    "difference",
    "draw_gates",
    "duration",
    "ema_of",
    "evaluate",
    "evaluate_by_step",
    "final",
    "find_checkpoint",
    "fit",
    "held_out",
    "in_order",
    "inherit",
    "keep_profile",
    "leave",
    "load",
    "load_best",
    "load_weights",
    "losses",
    "one_hot_mse",
    "piece_of",
    "processes",
    "profiled",
    "recorded",
    "reporting",
    "rows_of_trial",
    "schedule",
    "seed_all",
    "settled",
    "split",
    "staircase",
    "step_of",
    "summary",
    "table",
    "top_k",
    "usage",
    "weights_in",
]
