"""What a run writes and reads back: its folder, metrics and summary, checkpoints, trackers."""
