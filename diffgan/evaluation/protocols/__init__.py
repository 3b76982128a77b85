"""What is generated, what it is compared with, and by which metrics."""
