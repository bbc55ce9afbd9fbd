"""What a user starts: one run, many runs, measurements, the demo."""
