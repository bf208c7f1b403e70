"""Ways to embed that a pipeline can hold, all behind ``EmbeddingBackend``."""
