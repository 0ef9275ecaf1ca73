"""What a model is worth: its answers to a split, scores with intervals, figures, report."""
