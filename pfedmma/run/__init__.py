"""From settings to the parts of a run, and from a run back to its parts."""
