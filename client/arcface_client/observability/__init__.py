"""What an embedder says of itself: diagnostics and metrics."""
