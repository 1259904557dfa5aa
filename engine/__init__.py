"""Trimtab's engine: the process that owns a session, and the workers it starts.

Inside this package every import is relative. A worker loads the package under the private name
`_trimtab_engine`, so that a user's own `engine.py` stays theirs (see `engine/__main__.py`).
"""

__version__ = "0.1.0"
