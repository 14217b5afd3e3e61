"""Where documents come from: data sources, few-shot pools, checks of rows."""
