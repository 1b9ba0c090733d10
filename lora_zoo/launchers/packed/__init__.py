"""Several runs that train together on one frozen base; each is otherwise the run that it would be alone."""
