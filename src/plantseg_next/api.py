"""The Python API: one function per command.

check, plan, train, verify, evaluate, predict, pseudo_label, self_train, demo. Each takes
paths and settings and returns a result; none prints.
"""

from plantseg_next.inference.records import PredictionTable
from plantseg_next.workflows.check import check
from plantseg_next.workflows.demo import DemoResult, demo
from plantseg_next.workflows.evaluate import evaluate
from plantseg_next.workflows.plan import plan
from plantseg_next.workflows.predict import predict
from plantseg_next.workflows.progress import Progress
from plantseg_next.workflows.pseudo_label import pseudo_label
from plantseg_next.workflows.self_train import self_train
from plantseg_next.workflows.train import ReproducibilityResult, TrainResult, train, verify
from plantseg_next.workflows.training_data import DataSources

__all__ = [
    "DataSources",
    "DemoResult",
    "PredictionTable",
    "Progress",
    "ReproducibilityResult",
    "TrainResult",
    "check",
    "demo",
    "evaluate",
    "plan",
    "predict",
    "pseudo_label",
    "self_train",
    "train",
    "verify",
]  # fmt: skip
