"""The pair factory: many workers fill one pair set, and what tells of it: status, verify, plan."""
