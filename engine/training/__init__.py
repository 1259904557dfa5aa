"""The one training loop (fine-tuning, distillation, quantization-aware training) and what it needs."""

from .loop import Course, Outcome, Plan, Precision, held_out_accuracy, rate_factor, reestimate_batch_norm, train

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
