"""Multilevel programs: problems whose losses depend on each other's solutions."""
