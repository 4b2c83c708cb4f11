"""The laboratory: training runs and evaluation. Serving never imports it."""
