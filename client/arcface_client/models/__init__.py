"""A model repository on disk, read only: versions, manifests, golden crops, embedding spaces."""
