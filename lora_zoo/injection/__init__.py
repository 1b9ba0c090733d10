"""Find the matrices of a model, plan their adapters, put them in and take them out again."""
