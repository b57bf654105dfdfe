"""What kind of failure it is, and what made the checkpoint: clusters and classifiers."""
