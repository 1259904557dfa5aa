"""The session directory: the store, the variants' files and lineage; safe against a kill at any instruction."""

from .session import Session, SessionError

__all__ = ["Session", "SessionError"]
