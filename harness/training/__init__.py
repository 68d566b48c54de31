"""Training of one run, on one device or on several, exactly resumable."""
