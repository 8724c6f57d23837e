"""The best epoch, and when to stop waiting for a better one: callbacks for `fit`, both off unless asked for.

    best = KeepBest(folder)
    fit(..., part="val", callbacks=[best, EarlyStop(patience=10)])

Both judge by the batches that `fit` evaluates after each epoch. These have to be validation images. An epoch chosen by
its accuracy on the test set has an accuracy there that is too good.

Reading order: after folder.py. Next: report.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from minires.train import checkpoint
from minires.train.evaluate import Evaluation
from minires.train.folder import RunFolder
from minires.train.training import Training


def epochs_since_best(history: Sequence[dict[str, Any]], part: str = "val") -> int:
    """How many finished epochs follow the best one: of the highest accuracy, and among equals of the lowest loss.

    An epoch judged on fewer images than others, because the time was up, is never the best.
    """
    judged = [record for record in history if f"{part}_accuracy" in record]
    scores = [tuple(record[f"{part}_{name}"] for name in ("images", "accuracy", "loss")) for record in judged]
    scores = [(images, accuracy, -loss) for images, accuracy, loss in scores]
    return len(scores) - 1 - scores.index(max(scores)) if scores else 0


class KeepBest:
    """Writes the weights of the best epoch so far to best.safetensors in `folder`, beside those of the last.

    `minires predict` and `--eval-only` prefer that file, and results.json notes which weights were tested.
    Only finished epochs are judged: a run that is stopped within an epoch and resumed keeps the same weights.
    """

    def __init__(self, folder: RunFolder, part: str = "val"):
        self.folder, self.part = folder, part

    def __call__(self, training: Training, evaluation: Evaluation) -> None:
        """Save the weights if the epoch that has just ended is the best, or if none are kept. Raises `OSError`."""
        best = training.batch == 0 and epochs_since_best(training.history, self.part) == 0
        if best or not self.folder.best.exists():
            about = {"epoch": training.record["epoch"], **evaluation.numbers(self.part)}
            self.folder.save_weights(training, self.folder.best, about)

    def take_over(self, resumed: RunFolder) -> None:
        """Copy the best weights so far from the folder of the run that is resumed, if it has any. Raises `OSError`."""
        if resumed.best.exists() and not self.folder.best.exists():
            checkpoint.write_atomically(self.folder.best, resumed.best.read_bytes())

    def load(self, training: Training) -> float | None:
        """Put the best weights into the model; returns the epoch that they are of, None if no weights are kept.

        Raises `CheckpointError` for a damaged file.
        """
        if not self.folder.best.exists():
            return None
        checkpoint.load_model_weights(training.model, self.folder.best)
        return checkpoint.read_info(self.folder.best)["epoch"]


class EarlyStop:
    """Ends the training once `patience` epochs in a row were no better than the best before them."""

    def __init__(self, patience: int, part: str = "val"):
        self.patience, self.part = patience, part

    def __call__(self, training: Training, evaluation: Evaluation | None = None) -> bool:
        """Whether to stop."""
        return epochs_since_best(training.history, self.part) >= self.patience
