"""A source network: files, checkpoints, packs, what they hold and how they are fixed."""
