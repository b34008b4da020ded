"""Preference data: read into one normal form, validated, split by prompt and described for the record."""
