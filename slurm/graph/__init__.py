"""The job graph of a sweep: the work that is left, the arrays that do it, and the waves that a site's limits allow."""
