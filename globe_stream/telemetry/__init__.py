"""What a run tells while it works: metrics, progress and optional trackers."""
