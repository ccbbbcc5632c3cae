"""Images that are rendered, not downloaded: shapes and faces."""
