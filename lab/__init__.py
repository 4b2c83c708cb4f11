"""What is studied: training runs and evaluation. Serving never imports it."""
