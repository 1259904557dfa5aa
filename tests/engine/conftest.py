"""Lets the tests here import the makers of records beside them (`session_makers.py`)."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
