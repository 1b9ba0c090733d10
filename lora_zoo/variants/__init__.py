"""One file a variant; a file here is a registered variant."""
