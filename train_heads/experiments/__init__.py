"""Several runs beside each other: ablations, comparisons, tables of results."""
