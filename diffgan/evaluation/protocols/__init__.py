"""What is generated, and what it is compared with."""
