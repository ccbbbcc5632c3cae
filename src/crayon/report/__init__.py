"""What a run shows: the terminal, plots, the HTML page, Weights & Biases."""
