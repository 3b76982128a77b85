"""Tables and charts of records (metrics.json): the verb `tables`, and `render` for those in README files."""
