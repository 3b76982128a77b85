"""What the trainings of all networks share: weight averages, checkpoints, schedules, strategies."""
