"""Forward and backward of an adapted dense layer in one piece, at little more than the frozen one's cost.

Each equals its adapter's `forward`, which does what a kernel refuses (`dense.DenseKernel.refusal`). Each
picks the cheaper order for the shapes at hand, forward and gradients apart: two thin products beside W x, or
the effective matrix formed once and one large product (arXiv:2312.03415). Where x is narrower than float32
the former alone: rounded to x's dtype, W' would lose a small change.

Shapes: N tokens, O out, I in, R rank; x is (..., I) and the output (..., O).
"""
