"""A trained model as a web page and an HTTP API on Ray Serve."""
