"""The main job and its stages; it knows every room, and no room knows it."""
