"""A running lab."""
