"""What Pilot decides, pure: no I/O, no clock, standard library only."""
