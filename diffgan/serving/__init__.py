"""A page on this machine that draws with a student and its teacher on the same noise."""
