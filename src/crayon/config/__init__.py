"""What can be asked for: every setting, its range and its dotted name, without torch."""
