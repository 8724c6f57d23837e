"""Training: the loop around a model, checkpoints that survive a crash, and the report of a run.

    from minires import train

    training = train.Training(model, optimizer)
    evaluation = train.fit(training, train_batches, test_batches, schedule, epochs=10)

Reading order: evaluate.py, training.py (all that changes), loop.py (the loop itself). When you want them: checkpoint.py
(files on disk), stop.py (Ctrl-C and limits), progress.py, folder.py (the files of a run), best.py (the best epoch,
early stopping), report.py (results.json and the pictures), compare.py (several runs side by side), nonfinite.py (where
NaN came from), memory.py (--dry-run).
"""

from minires.train.best import EarlyStop, KeepBest
from minires.train.evaluate import Evaluation, evaluate
from minires.train.folder import RunFolder
from minires.train.loop import Interrupted, fit
from minires.train.nonfinite import TrainingError
from minires.train.stop import Stop
from minires.train.training import Training

__all__ = [
    "EarlyStop", "Evaluation", "Interrupted", "KeepBest", "RunFolder", "Stop", "Training", "TrainingError", "evaluate",
    "fit",
]  # fmt: skip
