"""The search: its space, the Optuna study, early stopping, trials on Ray Tune, its plots."""
