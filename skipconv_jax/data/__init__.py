"""Data: readers, synthetic twins, augmentation, input pipelines; no TensorFlow anywhere."""
