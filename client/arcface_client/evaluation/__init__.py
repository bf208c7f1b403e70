"""Do several ways of embedding give the same embeddings, and how fast; ``arcface-client compare``."""
