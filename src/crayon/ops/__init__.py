"""What is looked at before a run (doctor) and broken on purpose during one (chaos)."""
