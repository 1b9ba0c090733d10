"""One file a composition of active adapters."""
