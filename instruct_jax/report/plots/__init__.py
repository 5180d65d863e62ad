"""The plots of the report: matplotlib, one style."""
