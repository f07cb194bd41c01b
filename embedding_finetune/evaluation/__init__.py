"""From runs to numbers that can be trusted: metrics, intervals and tests, results, plots, the report page."""
