"""The one training loop (fine-tuning, distillation, quantization-aware training) and what it needs."""

from .course import Course
from .judging import held_out_accuracy, reestimate_batch_norm
from .loop import train
from .plan import Outcome, Plan, rate_factor
from .precision import Precision

__all__ = [
    "Course",
    "Outcome",
    "Plan",
    "Precision",
    "held_out_accuracy",
    "rate_factor",
    "reestimate_batch_norm",
    "train",
]
