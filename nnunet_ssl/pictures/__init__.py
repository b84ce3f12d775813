"""What the pictures of reports, trainings and the demo have in common."""
