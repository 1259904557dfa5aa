"""Measurements: one file each. They run in workers, on a variant and the baseline side by side.

`latency` and `accuracy` are what users ask for. Behind them: `timing` (how arms are timed against each other),
`agreement` (how far outputs moved), `baseline_outputs` (kept, so that they are computed once), `statistics` (the
intervals of both), `conditions` (where it ran). A measurement knows nothing of techniques or the store.
"""
