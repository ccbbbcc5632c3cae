"""What was trained, used: one module per command. `settings` says what each may be asked for."""
