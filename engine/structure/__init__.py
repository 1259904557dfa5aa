"""The structure of a network: which channels, neurons, heads and hidden units can go, and how they are taken out.

`network` finds what belongs together and removes it; `attention` and `recurrent` know the two kinds of layer whose
width is more than a channel count; `importance` says what matters least; `widths` decides how much of each layer
stays, by a ratio or by searching for a budget; `sensitivity` measures what each layer can stand; `masks` zeroes
single weights; `students` derives a smaller network from a larger one. `cutting`, `zeroing` and `teaching` are the
techniques `prune-structured`, `prune-unstructured` and `distill` from end to end, on what they share in `retraining`.
All of it needs torch: workers only.
"""
