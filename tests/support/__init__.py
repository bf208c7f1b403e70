"""What several tests share: models, servers, stand-ins."""
