"""Whether what is known of a variant still holds on this machine: the warning that stands wherever it is shown.

Speed and answers of an INT8 graph belong to a class of processor (`targets.py`). A session or an export may have moved
since: then one sentence says that the variant was made for another class, or else that its figures come from one.
"""

from ..protocol import Processor, Variant
from ..session import Session
from ..session.ranking import figures_of
from ..targets import INT8_TECHNIQUES, measured_elsewhere, moves_class
from .recipe import lineage


def warning_of(session: Session, variant: Variant, processor: Processor) -> str | None:
    """The sentence, or None where the variant's answers and figures hold on this processor."""
    if not any(step.technique in INT8_TECHNIQUES for step in lineage(session, [variant])):
        return None
    if made := moves_class(variant.target, processor):
        return made
    figures = figures_of(variant, list(session.measurements.values()), session.options)
    shown = [one.conditions for one in (figures.accuracy, figures.best) if one is not None]
    return measured_elsewhere([held.processor for held in shown if held.device == "cpu"], processor)
