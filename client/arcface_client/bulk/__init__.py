"""Embeds any number of crops: from files, tar files, Parquet and buckets into a gallery; ``docs/bulk.md``."""
