"""The panes of the main screen, one file each with its .tcss beside it. A pane is a function of a snapshot: `show()`."""
