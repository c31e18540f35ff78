"""An invented encyclopedia, records for every stage, and the quickstart's report."""
