"""Reading what products export: records of other layouts, and tables that belong together."""
