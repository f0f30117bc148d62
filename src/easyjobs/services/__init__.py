"""What the manager does, one module each."""
