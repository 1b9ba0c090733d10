"""Settings of a run, their checks, and the command line that gives them. No torch here."""
