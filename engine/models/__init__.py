"""The user's model file, whatever its kind: what it offers, safely read."""

from .model import Arrays, Model, ModelError, file_sha256, open_model, samples_in

__all__ = ["Arrays", "Model", "ModelError", "file_sha256", "open_model", "samples_in"]
