"""Tables of differences: from a chosen row, and between two collections."""
