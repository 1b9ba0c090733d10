"""Tasks: where examples come from, how they become model inputs, and how a model is judged on them."""
