"""Preference and best-of-n statistics."""
