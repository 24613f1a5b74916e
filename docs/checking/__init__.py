"""What docs/check.py is made of: reading pages, generated tables, running blocks and checking commands."""
