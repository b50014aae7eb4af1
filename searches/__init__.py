"""Searches to copy and edit: `ensemble search run searches/<file>.py --campaign C --site S`."""
