"""What happened: the transactional truth about trainings, runs, attempts and events."""
