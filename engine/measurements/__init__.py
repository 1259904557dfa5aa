"""Measurements: one file each. They run in workers, on a variant and the baseline side by side.

`latency` and `accuracy` are what users ask for; `statistics` holds the intervals both report, `complexity` counts
multiply-adds. A measurement knows nothing of techniques or the store.
"""
