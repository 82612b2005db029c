"""The status page: what a browser loads, and the numbers that it asks for every second."""
