"""Where a run happens, in this process or on Ray's workers, and what it survives."""
