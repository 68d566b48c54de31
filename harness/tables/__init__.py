"""Comparison tables: from records to markdown, LaTeX, CSV and HTML, in our layout and in the paper's."""
