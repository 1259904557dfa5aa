"""What each technique takes, for a command line that has no engine to ask. Light: nothing here loads torch."""

from ..protocol import TechniqueInfo


def technique_forms() -> tuple[TechniqueInfo, ...]:
    """Every technique with its form, for no variant."""
    from ..techniques import describe

    return describe(None, None, None)
