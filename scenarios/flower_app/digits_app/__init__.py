"""A plain Flower app with PyTorch on scikit-learn's digits, compressed by two lines."""
