"""What exists for speed alone: each with a plain path beside it."""
