"""Small Flower apps of many shapes on scikit-learn's digits, plain and compressed."""
