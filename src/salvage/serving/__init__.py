"""What is registered, and what it answers."""
