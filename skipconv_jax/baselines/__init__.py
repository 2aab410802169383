"""What the paper compares Skip-Convolutions with."""
