"""Training of one run, on one device or several, with exact resumption."""
