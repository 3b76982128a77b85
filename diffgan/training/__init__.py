"""What trainings of every kind share."""
