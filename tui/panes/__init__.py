"""The panes of the main screen, one file each. A pane is a function of a snapshot: `show()` is the only way in."""
