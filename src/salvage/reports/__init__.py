"""What is shown: tables, pictures, the page, one failed rollout."""
