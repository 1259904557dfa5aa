"""What leaves a session: the results as JSON, CSV and Markdown, the report, the recipe, and the variants' files.

Everything here reads records and files and changes nothing in the session. Foreign text goes through
`engine/safety.py` at the last moment. Light: no torch, onnx or numpy.
"""

from . import explanation, results
from .export import export_variants
from .recipe import recipe_text

__all__ = ["explanation", "export_variants", "recipe_text", "results"]
