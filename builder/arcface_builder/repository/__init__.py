"""The model repository: configs, manifests, publishing."""
