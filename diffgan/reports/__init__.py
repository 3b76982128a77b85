"""The page of a run: teacher and student on the same noise, metrics, curves and provenance in one HTML file."""
