"""Suites: everything that is measured.

The interface of a suite is in `suites.interface`, the names of suites in `suites.registry`.
"""
