"""The report: a collection as one HTML page, and an index of all collections of a folder of runs."""
