"""What a run is asked to do: settings, their checks, and the command line that gives them. No torch here."""
