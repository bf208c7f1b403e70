"""What a user sets: arguments, environment, YAML."""
