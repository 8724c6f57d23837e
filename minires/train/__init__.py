"""The loop around a model: fit, evaluate, checkpoints that survive a crash, and the report of a run.

Reading order: loop.py (the loop itself), evaluate.py, checkpoint.py (files on disk), stop.py (Ctrl-C and limits),
progress.py, folder.py (the files of a run), report.py (results.json and the pictures), compare.py (several runs side by
side). For later: device_step.py and memory.py (a step on a GPU), cpu_memory.py (--dry-run), cli.py (command lines).
"""

from __future__ import annotations

from minires.train import cli
from minires.train.checkpoint import CheckpointError, fingerprint, load_model_weights, read_info, saved_settings
from minires.train.cpu_memory import step_memory
from minires.train.device_step import DeviceStep
from minires.train.evaluate import Evaluation, evaluate
from minires.train.folder import RunFolder, latest_run, new_run, state_file, weights_file
from minires.train.loop import Interrupted, Training, TrainingError, fit
from minires.train.memory import OutOfMemory
from minires.train.memory import step_bytes as gpu_step_bytes
from minires.train.progress import format_seconds, say
from minires.train.report import draw_pictures, final_line, new_figure, results
from minires.train.stop import Stop

__all__ = [
    "CheckpointError", "DeviceStep", "Evaluation", "Interrupted", "OutOfMemory", "RunFolder", "Stop", "Training",
    "TrainingError", "cli", "draw_pictures", "evaluate", "final_line", "fingerprint", "fit", "format_seconds",
    "gpu_step_bytes", "latest_run", "load_model_weights", "new_figure", "new_run", "read_info", "results",
    "saved_settings", "say", "state_file", "step_memory", "weights_file",
]  # fmt: skip
