"""The tables: their schemas, their files, the names they share."""
