"""What we are measured beside: each a program of its own, run in a process of its own."""
