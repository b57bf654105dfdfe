"""Problem sets, what verifies an answer to them, rollouts that exist already."""
