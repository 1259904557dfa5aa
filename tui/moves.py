"""Variants whose speed or answers belong to another class of processor than this machine, as the engine's results say.

What is read is our own engine's, but may be an older one's: whatever does not look as expected is left out.
"""

import json


def read(results: str) -> dict[str, str]:
    """Variant's id → the sentence that warns of it."""
    try:
        return {str(one["id"]): str(one["warning"]) for one in json.loads(results)["variants"] if one.get("warning")}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}
