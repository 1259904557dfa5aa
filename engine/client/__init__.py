"""Attach to a session's engine or start it, send commands, follow events. Light: all that `tui` imports."""

from .client import EngineClient, EngineError, EngineGone, EngineNotRunning, connect, fold, known_sessions
from .forms import technique_forms

__all__ = [
    "EngineClient",
    "EngineError",
    "EngineGone",
    "EngineNotRunning",
    "connect",
    "fold",
    "known_sessions",
    "technique_forms",
]
