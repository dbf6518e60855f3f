"""Where a cache is, and how its files and records get there whole and come back checked."""
