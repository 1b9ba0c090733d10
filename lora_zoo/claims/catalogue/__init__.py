"""The claims, a file for each paper or topic: rows of data, and functions where no form fits."""
