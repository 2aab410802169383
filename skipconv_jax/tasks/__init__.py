"""Tasks: targets, losses, decoding and metrics. They know nothing of skipping."""
